"""Budgets of blocks, counted in weights: as near to what is asked as whole blocks can come."""

from __future__ import annotations

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
        raise Refusal(
            f"a budget of {wanted:.0f} pruned weights would empty a layer: at most {most} of {int(counted.sum())} can "
            "go while each layer keeps what it must; lower sparsity="
            + (" or allocation.least_density=" if any(layer.least > 1 for layer in layers) else "")
        )
    taken = order[: int(nearest(gone, wanted))]
    totals = torch.zeros(len(layers), dtype=torch.int64, device=device).index_add_(0, owner[taken], counted[taken])
    return totals.tolist()


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
    choices = [[0, *gone.tolist()] for gone in reachable]
    places = [int(nearest(gone, want)) for gone, want in zip(reachable, wanted, strict=True)]
    moved: set[int] = set()
    while total is not None:
        off = sum(one[place] for one, place in zip(choices, places, strict=True)) - total
        found = []
        for layer, (one, place) in enumerate(zip(choices, places, strict=True)):
            other = place - 1 if off > 0 else place + 1
            if layer in moved or not 0 <= other < len(one):
                continue
            if abs(off + one[other] - one[place]) < abs(off) - 1e-9:
                found.append((abs(one[other] - wanted[layer]) - abs(one[place] - wanted[layer]), layer, other))
        if not found:
            break
        _, layer, other = min(found)
        moved.add(layer)
        places[layer] = other
    return [one[place] for one, place in zip(choices, places, strict=True)]


def nearest(gone: Tensor, wanted: float | Tensor) -> Tensor:
    """How many blocks have a number of weights nearest to `wanted`, the more of two; 0-dim, without waiting.

    `gone` are the weights of the first 1, 2, ... blocks.
    """
    padded = torch.cat([gone.new_zeros(1), gone])
    away = (padded.double() - wanted).abs()
    return len(gone) - away.flip(0).argmin()
