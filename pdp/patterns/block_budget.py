"""Budgets of blocks, counted in weights: as near to what is asked as whole blocks can come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.errors import Refusal
from pdp.layers import Layer


def global_budget(
    layers: Sequence[Layer], saliencies: Sequence[Tensor], sizes: Sequence[Tensor], share: float
) -> list[int]:
    """Weights that each layer loses if the blocks of least saliency go, until as many weights as whole blocks allow.

    The `least` weights of each layer stay, in its largest blocks. Among equal saliencies earlier layers lose first.
    Raises `Refusal` if too few blocks may go.
    """
    device = saliencies[0].device
    values, weights, owners = [], [], []
    for place, (layer, saliency, size) in enumerate(zip(layers, saliencies, sizes, strict=True)):
        flat, own = saliency.reshape(-1).double().to(device), size.reshape(-1).to(device)
        order = flat.sort(stable=True).indices
        # Of the largest blocks, those that hold the weights which always stay.
        staying = own.sum() - own[order].cumsum(0) < layer.least
        flat = flat.index_fill(0, order[staying], math.inf)
        values.append(flat)
        weights.append(own)
        owners.append(torch.full_like(own, place))
    joint, counted, owner = torch.cat(values), torch.cat(weights), torch.cat(owners)
    wanted = share * float(counted.sum())
    order = joint.sort(stable=True).indices
    order = order[joint[order].isfinite()]
    gone = counted[order].cumsum(0)
    most = int(gone[-1]) if len(gone) else 0
    if wanted > most + int(counted.max()) / 2:
        raise _too_much(layers, wanted, most)
    taken = order[: int(nearest(gone, wanted))]
    totals = torch.zeros(len(layers), dtype=torch.int64, device=device).index_add_(0, owner[taken], counted[taken])
    return totals.tolist()


def within_reach(
    layers: Sequence[Layer], reachable: Sequence[Tensor], share: float, size: int
) -> tuple[list[Layer], float]:
    """The layers with what they keep in whole blocks as their `least`, and the share, or the most that can go.

    `reachable` is as for `whole_budget`; `size` is how many weights a block has. Raises `Refusal` if the share is more
    than half a block out of reach.
    """
    most = [int(gone[-1]) if len(gone) else 0 for gone in reachable]
    units = sum(layer.units for layer in layers)
    if share * units > sum(most) + size / 2:
        raise _too_much(layers, share * units, sum(most))
    floored = [dataclasses.replace(layer, least=layer.units - top) for layer, top in zip(layers, most, strict=True)]
    return floored, min(share, sum(most) / units)


def _too_much(layers: Sequence[Layer], wanted: float, most: int) -> Refusal:
    return Refusal(
        f"a budget of {wanted:.0f} pruned weights would empty a layer: at most {most} of "
        f"{sum(layer.units for layer in layers)} can go while each layer keeps what it must; lower sparsity="
        + (" or allocation.least_density=" if any(layer.least > 1 for layer in layers) else "")
    )


def whole_budget(
    wanted: Sequence[float],
    reachable: Sequence[Tensor],
    total: float | None,
) -> list[int]:
    """What each layer wants, in whole blocks.

    `reachable` are the ascending numbers of weights that a layer's first 1, 2, ... blocks have, as far as it may lose
    them. Every layer first takes what is nearest; then, as long as that brings the sum nearer to `total`, a layer for
    which it matters least takes the next block less or more.
    """
    places = [int(nearest(gone, want)) for gone, want in zip(reachable, wanted, strict=True)]
    # A layer moves once at most.
    choices = [_around(gone, place) for gone, place in zip(reachable, places, strict=True)]
    counts = [int(gone[place - 1]) if place else 0 for gone, place in zip(reachable, places, strict=True)]
    moved: set[int] = set()
    while total is not None:
        off = sum(counts) - total
        found = []
        for layer, one in enumerate(choices):
            other = one[0 if off > 0 else 1]
            if layer in moved or other is None:
                continue
            if abs(off + other - counts[layer]) < abs(off) - 1e-9:
                found.append((abs(other - wanted[layer]) - abs(counts[layer] - wanted[layer]), layer, other))
        if not found:
            break
        _, layer, other = min(found)
        moved.add(layer)
        counts[layer] = other
    return counts


def nearest(gone: Tensor, wanted: float | Tensor) -> Tensor:
    """How many blocks have a number of weights nearest to `wanted`, the more of two; 0-dim, without waiting.

    `gone` are the weights of the first 1, 2, ... blocks.
    """
    padded = torch.cat([gone.new_zeros(1), gone])
    away = (padded.double() - wanted).abs()
    return len(gone) - away.flip(0).argmin()


def _around(gone: Tensor, place: int) -> tuple[int | None, int | None]:
    """How many weights go with one block less and with one more than `place`; None where it cannot be."""
    before = None if place == 0 else int(gone[place - 2]) if place > 1 else 0
    return before, int(gone[place]) if place < len(gone) else None
