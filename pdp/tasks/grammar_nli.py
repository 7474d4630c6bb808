"""Natural-language inference generated from a grammar of quantifiers, negation and hypernyms, with exact labels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from itertools import product

LABELS = ("entailment", "neutral", "contradiction")

# Hypernyms and the words below each of them. Nouns under one hypernym exclude each other, and so do nouns under
# different hypernyms; verbs that are not one below the other are independent of each other.
_NOUNS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse"),
    "person": ("baker", "nurse", "pilot"),
    "vehicle": ("truck", "train", "ferry"),
    "plant": ("rose", "oak", "fern"),
}
_VERBS: dict[str, tuple[str, ...]] = {
    "move": ("turn", "slide", "roll", "drift"),
    "shine": ("glow", "gleam", "sparkle", "glitter"),
}
_ABOVE = {low: high for table in (_NOUNS, _VERBS) for high, lows in table.items() for low in lows}

# For each form: the quantifier; the modal verb; whether the sentence says that something exists (or else that nothing
# does); and whether that something can do what the verb says. "every n can v" says that no n exists that cannot v.
_FORMS = (
    ("every", "can", False, False),
    ("each", "can", False, False),
    ("some", "can", True, True),
    ("some", "cannot", True, False),
    ("no", "can", False, True),
    ("no", "cannot", False, False),
)


@dataclass(frozen=True)
class Sentence:
    """A form (the index into `_FORMS`), a noun and a verb."""

    form: int
    noun: str
    verb: str

    @property
    def text(self) -> str:
        """The sentence in English."""
        quantifier, modal, _, _ = _FORMS[self.form]
        return f"{quantifier} {self.noun} {modal} {self.verb}"

    @property
    def claim(self) -> tuple[bool, str, str, bool]:
        """(whether such a thing exists, noun, verb, whether that thing can do what the verb says)."""
        _, _, exists, can = _FORMS[self.form]
        return exists, self.noun, self.verb, can


@dataclass(frozen=True)
class Pair:
    """A premise, a hypothesis, and the index of its label in `LABELS`."""

    premise: str
    hypothesis: str
    label: int


def decide(premise: Sentence, hypothesis: Sentence) -> int:
    """The index of the label: whether the premise entails the hypothesis, is neutral to it, or contradicts it.

    The decision considers all worlds in which every noun applies to something, whatever falls under a noun also falls
    under its hypernym, and nouns that are not one under the other apply to nothing in common. For the decision only the
    sorts of individuals that exist in a world matter.
    """
    nouns, verbs = _relation(premise.noun, hypothesis.noun), _relation(premise.verb, hypothesis.verb)
    return _decide(premise.form, hypothesis.form, nouns, verbs)


def _relation(first: str, second: str) -> tuple[str, str]:
    """Two representative words with the same relation as the given ones, so that the decision can be cached."""
    if first == second:
        return "dog", "dog"
    if _ABOVE.get(first) == second:
        return "dog", "animal"
    return ("animal", "dog") if _ABOVE.get(second) == first else ("cat", "dog")


@cache
def _decide(premise: int, hypothesis: int, nouns: tuple[str, str], verbs: tuple[str, str]) -> int:
    # The verbs are named by nouns here, because only the relation between them matters.
    first, second = Sentence(premise, nouns[0], verbs[0]).claim, Sentence(hypothesis, nouns[1], verbs[1]).claim
    if not possible(first, (not second[0], *second[1:])):
        return 0
    return 1 if possible(first, second) else 2


def possible(*claims: tuple[bool, str, str, bool]) -> bool:
    """Whether some world satisfies all claims.

    Remove every sort of individual that a claim denies; then each individual that must exist must be of a remaining
    sort.
    """
    nouns, verbs = sorted({claim[1] for claim in claims}), sorted({claim[2] for claim in claims})
    sorts = [
        (is_noun, can_verb)
        for is_noun in _assignments(nouns, exclusive=True)
        for can_verb in _assignments(verbs, exclusive=False)
    ]
    denied = [claim for claim in claims if not claim[0]]
    left = [sort for sort in sorts if not any(_is(sort, claim) for claim in denied)]
    needed = [claim for claim in claims if claim[0]]
    return all(any(_is(sort, claim) for sort in left) for claim in needed) and all(
        any(is_noun[noun] for is_noun, _ in left) for noun in nouns
    )


def _is(sort: tuple[dict[str, bool], dict[str, bool]], claim: tuple[bool, str, str, bool]) -> bool:
    is_noun, can_verb = sort
    return is_noun[claim[1]] and can_verb[claim[2]] == claim[3]


def _assignments(words: list[str], exclusive: bool) -> list[dict[str, bool]]:
    """All combinations of words that can be true of one individual."""
    found = []
    for values in product((False, True), repeat=len(words)):
        chosen = dict(zip(words, values, strict=True))
        under = all(chosen[_ABOVE[word]] for word in words if chosen[word] and _ABOVE.get(word) in chosen)
        true = [word for word in words if chosen[word]]
        apart = exclusive and any(_ABOVE.get(a) != b and _ABOVE.get(b) != a for a in true for b in true if a < b)
        if under and not apart:
            found.append(chosen)
    return found


def generate(seed: int, hypotheses: int) -> list[list[Pair]]:
    """`hypotheses` groups of three pairs: one hypothesis, with one premise for each label.

    Since every hypothesis comes with every label, the hypothesis alone says nothing about the label. No pair comes
    twice.
    """
    draw = random.Random(seed)
    nouns, verbs = _words(_NOUNS), _words(_VERBS)
    groups: list[list[Pair]] = []
    left: dict[Sentence, list[list[Sentence]]] = {}
    for _ in range(100 * hypotheses):
        if len(groups) == hypotheses:
            return groups
        hypothesis = Sentence(draw.randrange(len(_FORMS)), draw.choice(nouns), draw.choice(verbs))
        if hypothesis not in left:
            left[hypothesis] = _premises(hypothesis, draw)
        if all(left[hypothesis]):
            premises = [sentences.pop() for sentences in left[hypothesis]]
            groups.append([Pair(one.text, hypothesis.text, label) for label, one in enumerate(premises)])
    raise ValueError(f"the grammar has no {hypotheses} groups of pairs that differ")


def _premises(hypothesis: Sentence, draw: random.Random) -> list[list[Sentence]]:
    """Premises made of related words, for each label, in random order."""
    found: list[list[Sentence]] = [[] for _ in LABELS]
    nouns, verbs = _near(hypothesis.noun, _NOUNS, draw), _near(hypothesis.verb, _VERBS, draw)
    for premise in (Sentence(form, *words) for form in range(len(_FORMS)) for words in product(nouns, verbs)):
        if premise != hypothesis:
            found[decide(premise, hypothesis)].append(premise)
    for sentences in found:
        draw.shuffle(sentences)
    return found


def _words(table: dict[str, tuple[str, ...]]) -> list[str]:
    return [word for high, lows in table.items() for word in (high, *lows)]


def _near(word: str, table: dict[str, tuple[str, ...]], draw: random.Random) -> list[str]:
    """The word itself with its hypernym and two words beside it, or, for a hypernym, with three words below it."""
    high = _ABOVE.get(word, word)
    return [word, *table[high]] if word == high else [high, *table[high]]
