"""Selection: the cut between pruned and kept units, exact for any share, and which units fall under it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pdp.errors import Refusal

_BRACKETED_FROM = 1 << 12  # values of a layer; below it, one partition is as fast
_SPREAD_FROM = 1 << 16  # values of a mean layer; below it, threads wait for each other
_CACHED = 1 << 15  # values worked on at a time, which stay in the processor's cache
_scratch = threading.local()


def count_pruned(share: float, units: int) -> int:
    """How many of `units` a share in [0, 1] prunes: floor(share * units + 0.5)."""
    if not 0 <= share <= 1:
        raise Refusal(f"share={share} must lie in [0, 1]")
    return math.floor(share * units + 0.5)


def find_cut(saliency: Tensor, share: float, dim: int | None = None) -> Tensor:
    """The cut t midway between the largest pruned and the smallest kept saliency (PDP, section on t).

    `saliency` holds non-negative numbers of any shape. Without `dim` there is one cut over all of them, a 0-dim tensor;
    with `dim` one for each slice along it, shaped like `saliency` without that dimension. Float32, float64 for float64.
    Nothing pruned gives -inf, everything pruned +inf. Raises `Refusal` for a share outside [0, 1].
    """
    units = saliency.numel() if dim is None else saliency.shape[dim]
    return cut_at(saliency, count_pruned(share, units), dim)


def cut_at(saliency: Tensor, pruned: int, dim: int | None = None) -> Tensor:
    """`find_cut` for a number of pruned units instead of a share."""
    values = _computable(saliency.detach())
    if dim is None:
        if _selects_on_host(values):
            return torch.tensor(_host_cut(values.reshape(-1).numpy(), pruned), dtype=values.dtype)
        values, dim = values.reshape(-1), 0
    units = values.shape[dim]
    outer = values.shape[:dim] + values.shape[dim + 1 :] if dim >= 0 else values.shape[:dim] + values.shape[dim:][1:]
    if pruned <= 0 or pruned >= units:
        return values.new_full(outer, -math.inf if pruned <= 0 else math.inf)
    ordered = values.sort(dim=dim).values
    below, above = ordered.select(dim, pruned - 1), ordered.select(dim, pruned)
    return below + (above - below) * 0.5


def cuts_at(saliencies: Sequence[Tensor], pruned: Sequence[int]) -> list[Tensor]:
    """One `cut_at` for each layer; on the CPU the layers are spread over the threads torch may use."""
    if len(saliencies) > 1 and all(_selects_on_host(one) for one in saliencies):
        return _spread(cut_at, saliencies, pruned)
    return [cut_at(one, count) for one, count in zip(saliencies, pruned, strict=True)]


def magnitude_cuts_at(weights: Sequence[Tensor], pruned: Sequence[int]) -> list[Tensor]:
    """`cuts_at` of the weights' magnitudes, without a tensor of magnitudes where the CPU selects."""
    if all(_selects_on_host(one) for one in weights):
        return _spread(_magnitude_cut, [one.detach() for one in weights], pruned)
    return cuts_at([one.detach().abs() for one in weights], pruned)


def keep_units(saliency: Tensor, pruned: int) -> Tensor:
    """Which units stay when the `pruned` smallest go, lowest index first among equals; bool, shaped like `saliency`.

    Indices run in the logical order of the tensor whatever its memory layout. Forces no device synchronization.
    """
    values = _computable(saliency.detach()).reshape(-1)
    units = values.numel()
    if pruned <= 0 or pruned >= units:
        return torch.full(saliency.shape, pruned <= 0, dtype=torch.bool, device=saliency.device)
    if _selects_on_host(values):
        last = np.partition(values.numpy(), pruned - 1)[pruned - 1]
        keep = values > float(last)
        ties = (values == float(last)).nonzero().reshape(-1)
        keep[ties[pruned - (units - int(keep.sum()) - ties.numel()) :]] = True
        return keep.reshape(saliency.shape)
    last = values.sort().values[pruned - 1]
    tied = values == last
    taken = pruned - (values < last).sum()
    keep = (values > last) | (tied & (tied.cumsum(0) > taken))
    return keep.reshape(saliency.shape)


def count_global(saliencies: Sequence[Tensor], pruned: int, least_kept: int = 1) -> list[int]:
    """How many units each layer loses when the `pruned` smallest of all layers go; the counts sum to `pruned` exactly.

    The `least_kept` largest units of every layer are safe from the cut, so that no layer is emptied. Among equals the
    earlier layer, then the lower index goes first. Raises `Refusal` if that leaves too few units to prune.
    """
    sizes = [one.numel() for one in saliencies]
    free = sum(max(0, size - least_kept) for size in sizes)
    if pruned > free:
        raise Refusal(
            f"a budget of {pruned} pruned units would empty a layer: at most {free} of {sum(sizes)} can go "
            f"while each layer keeps {least_kept}; lower sparsity="
        )
    if pruned <= 0:
        return [0] * len(sizes)
    joined = torch.empty(sum(sizes), dtype=torch.float32, device=saliencies[0].device)
    parts = joined.split(sizes)
    for part, saliency in zip(parts, saliencies, strict=True):
        part.copy_(saliency.detach().reshape(-1))
        if least_kept:
            # Among equals the last ones are kept, as the first ones are pruned.
            part[part.flip(0).topk(min(least_kept, part.numel())).indices.neg().add(part.numel() - 1)] = math.inf
    if _selects_on_host(joined):
        last = float(np.partition(joined.numpy(), pruned - 1)[pruned - 1])
    else:
        last = float(joined.sort().values[pruned - 1])
    counts = [int((part < last).sum()) for part in parts]
    left = pruned - sum(counts)
    for layer, part in enumerate(parts):
        taken = min(left, int((part == last).sum()))
        counts[layer] += taken
        left -= taken
    return counts


def _computable(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _selects_on_host(values: Tensor) -> bool:
    return values.device.type == "cpu"


def _magnitude_cut(weight: Tensor, pruned: int) -> Tensor:
    weight = _computable(weight)
    # A selection does not ask for an order, so memory order spares the copy of a channels_last weight.
    dense = weight.as_strided((weight.numel(),), (1,)) if _is_dense(weight) else weight.reshape(-1)
    return torch.tensor(_host_cut(dense.numpy(), pruned, magnitudes=True), dtype=weight.dtype)


def _host_cut(flat: np.ndarray, pruned: int, magnitudes: bool = False) -> float:
    """The cut of the values of `flat`, or of their magnitudes; `flat` is left as it is."""
    if pruned <= 0 or pruned >= flat.size:
        return -math.inf if pruned <= 0 else math.inf
    cut = bracketed_cut(flat, pruned, magnitudes) if flat.size >= _BRACKETED_FROM else None
    return _partitioned_cut(_copied(flat, magnitudes), pruned) if cut is None else cut


def _copied(flat: np.ndarray, magnitudes: bool) -> np.ndarray:
    held = getattr(_scratch, "buffer", None)
    if held is None or held.size < flat.size or held.dtype != flat.dtype:
        held = _scratch.buffer = np.empty(flat.size, flat.dtype)
    copied = held[: flat.size]
    np.abs(flat, out=copied) if magnitudes else np.copyto(copied, flat)
    return copied


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))


def _partitioned_cut(values: np.ndarray, pruned: int) -> float:
    """Overwrites the order of `values`; one k-th element and a minimum, as two k-th elements take numpy's slow path."""
    values.partition(pruned - 1)
    below, above = float(values[pruned - 1]), float(values[pruned:].min())
    return below + (above - below) * 0.5


def bracketed_cut(flat: np.ndarray, pruned: int, magnitudes: bool) -> float | None:
    """The cut of `flat`, or of its magnitudes, by selecting among the few values between two bounds from a sample.

    Every value is counted against the bounds, so the cut is exact; None where the bounds missed it.
    """
    units = flat.size
    sample = math.ceil((2 * units) ** (2 / 3))  # about where the sample and what its bounds leave cost the same
    drawn = flat[:: max(1, units // sample)].copy()
    if magnitudes:
        np.abs(drawn, out=drawn)
    share = pruned / units
    place, spread = share * drawn.size, 1 + 4 * math.sqrt(share * (1 - share) * drawn.size)  # four standard errors
    first, last = max(0, int(place - spread)), min(drawn.size - 1, int(place + spread))
    drawn.partition((first, last))
    # No sample says how far the values beyond its own ends go.
    low = drawn[first] if first > 0 else -np.inf
    high = drawn[last] if last < drawn.size - 1 else np.inf
    below, between = 0, []
    for start in range(0, units, _CACHED):
        values = flat[start : start + _CACHED]
        if magnitudes:
            values = _copied(values, magnitudes)
        under = values < low
        below += int(np.count_nonzero(under))
        inside = values <= high
        between.append(values[np.greater(inside, under, out=inside)])
    among = np.concatenate(between)
    # Both neighbours of the cut must lie among them.
    return _partitioned_cut(among, pruned - below) if 0 < pruned - below < among.size else None


_pool: tuple[int, ThreadPoolExecutor] | None = None


def _spread(cut: Callable[[Tensor, int], Tensor], layers: Sequence[Tensor], pruned: Sequence[int]) -> list[Tensor]:
    """The cut of every layer, neighbours together, as handing over costs as much as a small layer's cut."""
    total, threads = sum(layer.numel() for layer in layers), torch.get_num_threads()
    if threads == 1 or total < len(layers) * _SPREAD_FROM:
        return [cut(*one) for one in zip(layers, pruned, strict=True)]
    enough = total / (8 * threads)
    batches: list[list[tuple[Tensor, int]]] = [[]]
    gathered = 0
    for layer, count in zip(layers, pruned, strict=True):
        if gathered >= enough:
            batches.append([])
            gathered = 0
        batches[-1].append((layer, count))
        gathered += layer.numel()
    done = _threads().map(lambda batch: [cut(*one) for one in batch], batches)
    return [one for batch in done for one in batch]


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = (os.getpid(), ThreadPoolExecutor(max(1, torch.get_num_threads()), thread_name_prefix="pdp-cut"))
    return _pool[1]
