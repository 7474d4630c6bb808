"""The grammar's labels against a separate model checker, and that a hypothesis alone says nothing about its label."""

from collections import Counter
from itertools import combinations, product

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from pdp.tasks import grammar_nli
from pdp.tasks.grammar_nli import LABELS, Sentence, decide, generate

FORMS = {
    ("every", "can"): lambda world, n, v: all(one[v] for one in world if one[n]),
    ("each", "can"): lambda world, n, v: all(one[v] for one in world if one[n]),
    ("some", "can"): lambda world, n, v: any(one[v] for one in world if one[n]),
    ("some", "cannot"): lambda world, n, v: any(not one[v] for one in world if one[n]),
    ("no", "can"): lambda world, n, v: not any(one[v] for one in world if one[n]),
    ("no", "cannot"): lambda world, n, v: not any(not one[v] for one in world if one[n]),
}
NOUNS, VERBS = ("dog", "cat", "animal"), ("turn", "roll", "move")


def individuals():
    """Everything that one thing can be: dogs and cats are animals and differ, what can turn or roll can move."""
    for dog, cat, animal, turn, roll, move in product((False, True), repeat=6):
        if (dog or cat) <= animal and not (dog and cat) and (turn or roll) <= move:
            yield {"dog": dog, "cat": cat, "animal": animal, "turn": turn, "roll": roll, "move": move}


def worlds():
    """Sets of individuals in which every kind has members; two of a kind are enough to tell the forms apart."""
    kinds = {name: [one for one in individuals() if one[name]] for name in ("dog", "cat")}
    rest = [one for one in individuals() if not one["dog"] and not one["cat"] and one["animal"]]
    for dogs, cats, others in product(subsets(kinds["dog"], 1), subsets(kinds["cat"], 1), subsets(rest, 0)):
        yield (*dogs, *cats, *others)


def subsets(found, least):
    return [chosen for size in range(least, 3) for chosen in combinations(found, size)]


def read(text):
    """The meaning, noun and verb of a sentence, from its words."""
    quantifier, noun, modal, verb = text.split()
    return FORMS[quantifier, modal], noun, verb


def test_labels_agree_with_all_small_worlds():
    sentences = [Sentence(form, noun, verb) for form, noun, verb in product(range(len(FORMS)), NOUNS, VERBS)]
    everywhere = list(worlds())
    meant = [read(sentence.text) for sentence in sentences]
    truth = [sum(1 << k for k, world in enumerate(everywhere) if says(world, n, v)) for says, n, v in meant]
    for (premise, p), (hypothesis, h) in product(zip(sentences, truth, strict=True), repeat=2):
        expected = 0 if not p & ~h else 2 if not p & h else 1
        assert LABELS[decide(premise, hypothesis)] == LABELS[expected], (premise.text, hypothesis.text)


@pytest.fixture(scope="module")
def groups():
    return generate(3, 1500)


def test_every_hypothesis_comes_once_with_each_label_and_no_pair_twice(groups):
    for group in groups:
        assert len({pair.hypothesis for pair in group}) == 1 and [pair.label for pair in group] == [0, 1, 2]
    pairs = [(pair.premise, pair.hypothesis) for group in groups for pair in group]
    assert len(set(pairs)) == len(pairs) and all(premise != hypothesis for premise, hypothesis in pairs)


def test_the_same_seed_gives_the_same_pairs(groups):
    assert generate(3, 40) == groups[:40] and generate(4, 40) != groups[:40]


def test_the_words_are_all_used(groups):
    words = Counter(word for group in groups for pair in group for word in f"{pair.premise} {pair.hypothesis}".split())
    nouns = {word for high, lows in grammar_nli._NOUNS.items() for word in (high, *lows)}
    assert nouns <= words.keys() and {"every", "some", "no", "cannot"} <= words.keys()


def test_a_classifier_that_sees_the_hypothesis_alone_stays_near_chance(groups):
    train, test = groups[300:], groups[:300]
    classifier = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=300))
    texts, labels = zip(*[(pair.hypothesis, pair.label) for group in train for pair in group], strict=True)
    classifier.fit(texts, labels)
    seen = [(pair.hypothesis, pair.label) for group in test for pair in group]
    accuracy = classifier.score(*zip(*seen, strict=True))
    assert accuracy <= 0.45
