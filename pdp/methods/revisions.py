"""Revisions: how often a method's behaviour has changed under the same options, so that no old record passes for new.

A run's identity holds the revision where it is above 1, and its record names it. Needs no torch.
"""

from __future__ import annotations

# By method, and by method and pattern where not all patterns changed; what is not named is at its first revision.
# What changed with each revision is told in docs/methods.md.
REVISIONS: dict[str, int] = {
    "optg": 2,
    "rigl": 2,
    "movement": 2,
    "sfp": 2,
    "lbc": 2,
}
CHANGES: dict[str, str] = {
    "optg": "cuts every hundredth of the run, the sigmoid's slope is per epoch, scores learn while nothing is pruned, "
    "equal scores stay",
    "rigl": "updates every 1/320 of the run from step 0 on; an update takes no step's place",
    "movement": "recipe.clip counts the scores' gradients too",
    "sfp": "the first mask comes before epoch 0",
    "lbc": "the number of candidates at epoch e is the authors'; none goes before anything was trained",
}


def revision_of(method: str, pattern: str) -> int:
    """The revision of a method with a pattern (random, nm or channel)."""
    return REVISIONS.get(f"{method}/{pattern}", REVISIONS.get(method, 1))
