"""Counts how often a method's behaviour has changed under the same options, so that old records are told apart.

A revision above 1 is part of a run's identity, and its record names it. Needs no torch.
"""

from __future__ import annotations

from pdp.patterns.options import kind_of

# The key is a method; method/pattern if only that pattern changed; or method+condition if only runs changed in which
# the condition holds: floor (layers must keep more than one unit), clip (gradients are clipped), followed (channels of
# a model whose couplings may be different since they are verified by proof; then of every method) or reordered (the
# same with images in channels last). Anything not listed is at its first revision. `CHANGES` says what the last
# revision changed.
REVISIONS: dict[str, int] = {
    "optg": 2,
    "rigl": 2,
    "movement+clip": 2,
    "sfp": 2,
    "lbc": 2,
    "str+floor": 2,
    "cs+floor": 2,
    "+followed": 3,
    "+reordered": 4,
}
CHANGES: dict[str, str] = {
    "optg": "cuts every hundredth of the run, the sigmoid's slope is per epoch, scores learn while nothing is pruned, "
    "equal scores stay",
    "rigl": "updates every 1/320 of the run from step 0 on; an update takes no step's place",
    "movement+clip": "recipe.clip counts the scores' gradients too",
    "sfp": "the first mask comes before epoch 0",
    "lbc": "the number of candidates at epoch e is the authors'; none goes before anything was trained",
    "str+floor": "learned thresholds keep to allocation.least_density and allocation.ends at every step",
    "cs+floor": "learned scores keep to allocation.least_density and allocation.ends at every step",
    "+followed": "channels are followed through concatenations, gains and norms over them, and proven before "
    "training; heads of attentions of every kind can go",
    "+reordered": "with recipe.channels_last=true too, layers before a pooling to 1 x 1 are followed and can go",
}
# Models whose couplings have been compared with those before and are the same.
_SAME_COUPLINGS = ("resnet18", "resnet20", "resnet34", "resnet50", "mobilenet_v1", "mobilenet_v2")
_SAME_FAMILIES = ("bert_", "gpt2")


def conditions(
    least_density: float | None,
    ends: str | None,
    clip: float | None,
    model: str = "",
    pattern: str = "random",
    channels_last: bool = False,
) -> tuple[str, ...]:
    """Which of the conditions hold in a run with these settings."""
    floor = bool(least_density) or (ends or "pruned") != "pruned"
    same = not model or model in _SAME_COUPLINGS or model.startswith(_SAME_FAMILIES)
    followed = pattern == "channel" and not same
    holding = {"floor": floor, "clip": clip is not None, "followed": followed}
    holding["reordered"] = followed and channels_last
    return tuple(condition for condition, holds in holding.items() if holds)


def revision_of(method: str, pattern: str, holding: tuple[str, ...] = ()) -> int:
    """The revision of a method with a pattern (random, nm, channel or block) under these conditions."""
    known = [REVISIONS.get(f"{method}/{pattern}", REVISIONS.get(method, 1))]
    every = [] if method == "dense" else [REVISIONS.get(f"+{condition}", 1) for condition in holding]
    return max(known + every + [REVISIONS.get(f"{method}+{condition}", 1) for condition in holding])


def named(method: str, pattern: str, revision: int, holding: tuple[str, ...] = ()) -> str:
    """The method's name in a table; it includes the record's revision if the code has a later one."""
    return f"{method} (revision {revision})" if revision < revision_of(method, kind_of(pattern), holding) else method
