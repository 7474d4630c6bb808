"""Annealing: a value that changes from a first to a last value over a part of training."""

from __future__ import annotations

ANNEALINGS = ("geometric", "linear")


def annealed(shape: str, first: float, last: float, progress: float) -> float:
    """The value at `progress` in [0, 1]: first * (last / first)^progress ("geometric"), or linear in between
    ("linear").
    """
    if progress <= 0:
        return first
    if progress >= 1:
        return last
    if shape == "geometric":
        return first * (last / first) ** progress
    return first + (last - first) * progress


def progress_of(moment: float, start: float, total: float, share: float) -> float:
    """The progress in [0, 1] at `moment`, for annealing that begins at `start` and takes `share` of the rest of
    `total`.

    `moment`, `start` and `total` are in one unit, epochs or steps. If annealing starts at the end of the run or after
    it, the progress is 1 at once.
    """
    if moment < start:
        return 0.0
    length = share * (total - start)
    return min(1.0, (moment - start) / length) if length > 0 else 1.0
