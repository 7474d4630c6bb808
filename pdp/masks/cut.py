"""Selection: the cut between pruned and kept units, exact for any share, and which units fall under it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pdp.errors import Refusal
from pdp.masks.host_cut import Trail, computable, host_cut, host_cuts


def count_pruned(share: float, units: int) -> int:
    """How many of `units` a share in [0, 1] prunes: floor(share * units + 0.5)."""
    if not 0 <= share <= 1:
        raise Refusal(f"share={share} must lie in [0, 1]")
    return math.floor(share * units + 0.5)


def find_cut(saliency: Tensor, share: float, dim: int | None = None) -> Tensor:
    """The cut t, midway between the largest pruned and the smallest kept saliency (PDP's definition of t).

    `saliency` holds non-negative numbers of any shape. Without `dim` the result is a 0-dim tensor, one cut over all of
    them; with `dim` it is one cut for each slice along that dimension, shaped like `saliency` without it. The result is
    float32, or float64 for a float64 saliency. If nothing is pruned the cut is -inf, if everything is pruned it is
    +inf. Raises `Refusal` for a share outside [0, 1].
    """
    units = saliency.numel() if dim is None else saliency.shape[dim]
    return cut_at(saliency, count_pruned(share, units), dim)


def cut_at(saliency: Tensor, pruned: int, dim: int | None = None) -> Tensor:
    """Like `find_cut`, but takes the number of units to prune instead of a share."""
    values = computable(saliency.detach())
    if dim is None:
        if _selects_on_host(values):
            return torch.tensor(host_cut(values.reshape(-1).numpy(), pruned), dtype=values.dtype)
        values, dim = values.reshape(-1), 0
    units = values.shape[dim]
    outer = values.shape[:dim] + values.shape[dim + 1 :] if dim >= 0 else values.shape[:dim] + values.shape[dim:][1:]
    if pruned <= 0 or pruned >= units:
        return values.new_full(outer, -math.inf if pruned <= 0 else math.inf)
    ordered = values.sort(dim=dim).values
    below, above = ordered.select(dim, pruned - 1), ordered.select(dim, pruned)
    return below + (above - below) * 0.5


def magnitude_cuts_at(
    weights: Sequence[Tensor], pruned: Sequence[int], trails: Sequence[Trail] | None = None
) -> list[Tensor]:
    """The cut of each layer's weight magnitudes, one 0-dim tensor per layer; `pruned` is the number to prune in each.

    On the CPU this makes no tensor of magnitudes. `trails` (one per layer) remember where each layer's cut was at the
    last call, which makes the next search faster; they never change the result.
    """
    if all(_selects_on_host(one) for one in weights):
        return host_cuts(weights, pruned, trails or [Trail() for _ in weights], torch.get_num_threads())
    return [cut_at(one.detach().abs(), count) for one, count in zip(weights, pruned, strict=True)]


def keep_units(saliency: Tensor, pruned: int) -> Tensor:
    """Bool mask shaped like `saliency`: True for the units that stay when the `pruned` smallest are removed.

    Among equal saliencies the unit with the lowest index is pruned first. The index is the position in the logical
    order of the tensor, whatever its memory layout. Forces no device synchronization.
    """
    values = computable(saliency.detach()).reshape(-1)
    units = values.numel()
    if pruned <= 0 or pruned >= units:
        return torch.full(saliency.shape, pruned <= 0, dtype=torch.bool, device=saliency.device)
    if _selects_on_host(values):
        parted = np.partition(values.numpy(), pruned - 1)
        highest = float(parted[pruned - 1])
        keep = values > highest
        if not bool((parted[pruned:] > highest).all()):  # some equal ones stay, or there is NaN
            ties = (values == highest).nonzero().reshape(-1)
            keep[ties[pruned - (units - int(keep.sum()) - ties.numel()) :]] = True
        return keep.reshape(saliency.shape)
    last = values.sort().values[pruned - 1]
    tied = values == last
    taken = pruned - (values < last).sum()
    keep = (values > last) | (tied & (tied.cumsum(0) > taken))
    return keep.reshape(saliency.shape)


def count_global(saliencies: Sequence[Tensor], pruned: int, least_kept: int | Sequence[int] = 1) -> list[int]:
    """How many units each layer loses when the `pruned` smallest of all layers together are pruned.

    The counts sum to `pruned` exactly. The `least_kept` largest units of every layer (one number for all layers, or one
    for each) are never pruned, so that no layer is emptied. Among equal saliencies, units of earlier layers are pruned
    first. Raises `Refusal` if this leaves too few units to prune.
    """
    sizes = [one.numel() for one in saliencies]
    floors = [least_kept] * len(sizes) if isinstance(least_kept, int) else list(least_kept)
    free = sum(max(0, size - floor) for size, floor in zip(sizes, floors, strict=True))
    if pruned > free:
        kept = f"each layer keeps {floors[0]}" if len(set(floors)) == 1 else "each layer keeps what it must"
        raise Refusal(
            f"a budget of {pruned} pruned units would empty a layer: at most {free} of {sum(sizes)} can go "
            f"while {kept}; lower sparsity=" + ("" if len(set(floors)) == 1 else " or allocation.least_density=")
        )
    if pruned <= 0:
        return [0] * len(sizes)
    joined = torch.empty(sum(sizes), dtype=torch.float32, device=saliencies[0].device)
    parts = joined.split(sizes)
    for part, saliency, floor in zip(parts, saliencies, floors, strict=True):
        part.copy_(saliency.detach().reshape(-1))
        if floor:
            # Among equal saliencies the last ones are protected, because the first ones are pruned first.
            part[part.flip(0).topk(min(floor, part.numel())).indices.neg().add(part.numel() - 1)] = math.inf
    if _selects_on_host(joined):
        last = float(np.partition(joined.numpy(), pruned - 1)[pruned - 1])
    else:
        last = float(joined.sort().values[pruned - 1])
    counts = [int((part < last).sum()) for part in parts]
    left = pruned - sum(counts)
    for layer, part in enumerate(parts):
        if not left:  # most often after the layer that holds the last one: few weights are equal
            break
        taken = min(left, int((part == last).sum()))
        counts[layer] += taken
        left -= taken
    return counts


def _selects_on_host(values: Tensor) -> bool:
    return values.device.type == "cpu"
