"""The exact cut on the CPU: one pass over the weights of each layer, with the layers distributed over threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdp.threads import pool

_BRACKETED_FROM = 1 << 12  # values in a layer; a smaller layer is simply partitioned, which is as fast
_SPREAD_FROM = 1 << 19  # mean values per layer; below this, threads cost more time in waiting than they save
_CACHED = 1 << 18  # values processed at a time, few enough to stay in the processor's cache
_NARROWEST, _WIDEST = 2.0**-9, 2.0**-4  # distance of the search bounds from the last cut, relative to it
_scratch = threading.local()


@dataclass
class Trail:
    """Where a layer's last cut was and how far it had moved: a hint that speeds up the next search, never a result."""

    cut: float = math.nan
    moved: float = math.inf

    def bounds(self) -> tuple[float, float] | None:
        """Bounds that should hold the next cut if it moves at most four times as far as last time; None if unknown."""
        reach = max(4 * self.moved, _NARROWEST * self.cut)
        return (self.cut - reach, self.cut + reach) if reach <= _WIDEST * self.cut else None

    def note(self, cut: float) -> None:
        """Records a newly found cut."""
        self.moved = abs(cut - self.cut) if math.isfinite(self.cut) else math.inf
        self.cut = cut


def computable(values: Tensor) -> Tensor:
    """The values in a type that the search can compute with: unchanged if float32 or float64, else as float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def host_cut(flat: np.ndarray, pruned: int, magnitudes: bool = False, trail: Trail | None = None) -> float:
    """The cut of the values of `flat` (1-dim), or of their magnitudes; does not change `flat`."""
    if pruned <= 0 or pruned >= flat.size:
        return -math.inf if pruned <= 0 else math.inf
    below, above = neighbours(flat, pruned, magnitudes, trail.bounds() if trail else None)
    cut = below + (above - below) * 0.5
    if trail:
        trail.note(cut)
    return cut


def neighbours(
    flat: np.ndarray, pruned: int, magnitudes: bool, near: tuple[float, float] | None = None
) -> tuple[float, float]:
    """The largest pruned and the smallest kept value; searches between the bounds `near` first, where given."""
    found = None
    if flat.size >= _BRACKETED_FROM:
        found = neighbours_between(flat, pruned, magnitudes, near) if near else None
        if found is None:
            found = neighbours_between(flat, pruned, magnitudes, sampled_bounds(flat, pruned, magnitudes))
    return found or _partitioned(_copied(flat, magnitudes), pruned)


def host_cuts(weights: Sequence[Tensor], pruned: Sequence[int], trails: Sequence[Trail], threads: int) -> list[Tensor]:
    """The cut of every layer's magnitudes; a thread takes several layers at once, as starting a task costs time."""
    cases = list(zip(weights, pruned, trails, strict=True))
    total = sum(weight.numel() for weight in weights)
    if threads == 1 or len(cases) < 2 or total < len(cases) * _SPREAD_FROM:
        return [_layer_cut(*case) for case in cases]
    enough = total / (8 * threads)
    batches: list[list[tuple[Tensor, int, Trail]]] = [[]]
    gathered = 0
    for case in cases:
        if gathered >= enough:
            batches.append([])
            gathered = 0
        batches[-1].append(case)
        gathered += case[0].numel()
    done = pool(threads).map(lambda batch: [_layer_cut(*case) for case in batch], batches)
    return [one for batch in done for one in batch]


def _layer_cut(weight: Tensor, pruned: int, trail: Trail) -> Tensor:
    exact = computable(weight.detach())
    # The cut does not depend on the order of the values, so a channels_last weight is read in memory order, without a
    # copy.
    dense = exact.is_contiguous() or (exact.dim() == 4 and exact.is_contiguous(memory_format=torch.channels_last))
    flat = exact.as_strided((exact.numel(),), (1,)) if dense else exact.reshape(-1)
    return torch.tensor(host_cut(flat.numpy(), pruned, magnitudes=True, trail=trail), dtype=exact.dtype)


def sampled_bounds(flat: np.ndarray, pruned: int, magnitudes: bool) -> tuple[float, float]:
    """Lower and upper bounds that very probably hold the cut, estimated from a random sample of the values."""
    units = flat.size
    sample = math.ceil((2 * units) ** (2 / 3))  # costs as much as the values between its bounds
    drawn = flat[:: max(1, units // sample)].copy()
    if magnitudes:
        np.abs(drawn, out=drawn)
    share = pruned / units
    place, spread = share * drawn.size, 1 + 4 * math.sqrt(share * (1 - share) * drawn.size)  # four standard errors
    first, last = max(0, int(place - spread)), min(drawn.size - 1, int(place + spread))
    drawn.partition((first, last))
    # The sample says nothing about values beyond its own smallest and largest one, so there the bounds are infinite.
    return float(drawn[first]) if first > 0 else -math.inf, float(drawn[last]) if last < drawn.size - 1 else math.inf


def neighbours_between(
    flat: np.ndarray, pruned: int, magnitudes: bool, bounds: tuple[float, float]
) -> tuple[float, float] | None:
    """The cut's two neighbours in `flat`, or in its magnitudes, selected among the few values between two bounds.

    The result is exact, because every value is counted against the bounds. Returns None if the neighbours do not both
    lie between the bounds.
    """
    low, high = (flat.dtype.type(bound) for bound in bounds)
    below, between = 0, []
    for start in range(0, flat.size, _CACHED):
        values = flat[start : start + _CACHED]
        if magnitudes:
            values = _copied(values, magnitudes)
        under = values < low
        below += int(np.count_nonzero(under))
        inside = values <= high
        between.append(values[np.greater(inside, under, out=inside)])
    among = between[0] if len(between) == 1 else np.concatenate(between)
    # Both neighbours of the cut must be among the selected values.
    return _partitioned(among, pruned - below) if 0 < pruned - below < among.size else None


def _copied(flat: np.ndarray, magnitudes: bool) -> np.ndarray:
    held = getattr(_scratch, "buffer", None)
    if held is None or held.size < flat.size or held.dtype != flat.dtype:
        held = _scratch.buffer = np.empty(flat.size, flat.dtype)
    copied = held[: flat.size]
    np.abs(flat, out=copied) if magnitudes else np.copyto(copied, flat)
    return copied


def _partitioned(values: np.ndarray, pruned: int) -> tuple[float, float]:
    """The value of rank `pruned` and the next larger one; reorders `values`.

    Two steps, because numpy is slow when it must find two ranks at once.
    """
    values.partition(pruned - 1)
    return float(values[pruned - 1]), float(values[pruned:].min())
