"""Annealing: a value that goes from a first to a last one over a stretch of training."""

from __future__ import annotations

ANNEALINGS = ("geometric", "linear")


def annealed(shape: str, first: float, last: float, progress: float) -> float:
    """The value at `progress` in [0, 1]: first * (last / first)^progress (geometric), or the straight line (linear)."""
    if progress <= 0:
        return first
    if progress >= 1:
        return last
    if shape == "geometric":
        return first * (last / first) ** progress
    return first + (last - first) * progress


def progress_of(moment: float, start: float, total: float, share: float) -> float:
    """How much of the stretch is done at `moment`: it begins at `start` and takes `share` of what is left of `total`.

    All are in one unit, epochs or steps. One that begins at the end, or after it, is done at once.
    """
    if moment < start:
        return 0.0
    length = share * (total - start)
    return min(1.0, (moment - start) / length) if length > 0 else 1.0
