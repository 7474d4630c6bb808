"""A pruner's layers as data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pdp.patterns.pattern import squared_cut
from pdp.pruner.parts import Parts

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def layer_report(pruner: Parts) -> pd.DataFrame:
    """`Pruner.report`."""
    if not pruner.finished:
        pruner.method.settle(pruner.layers)
    rows = []
    for layer in pruner.layers:
        keep = pruner.method.keep(layer) if layer.active and not pruner.finished else None
        pruned = layer.pruned if keep is None else pruner.pattern.removed(layer, keep)
        weights = nonzero = 0
        for member in layer.members:
            if member.weighs:
                weight = member.tensor.detach()
                hard = weight if keep is None else pruner.method.hard_weight(layer, weight, keep, member)
                weights += weight.numel()
                nonzero += int(torch.count_nonzero(hard))
        rows.append(
            {
                "name": layer.name,
                "type": layer.kind,
                "weights": weights,
                "units": layer.units,
                "pruned": pruned,
                "share": pruned / layer.units,
                "target_share": layer.final / layer.units,
                "nonzero": nonzero,
                "density": nonzero / weights,
            }
        )
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame.attrs["prunable_share"] = pruner.prunable_share
    return frame


@torch.no_grad()
def soft_gap(pruner: Parts) -> pd.DataFrame:
    """`Pruner.soft_gap`."""
    pruner.method.settle(pruner.layers)
    rows = []
    for layer in pruner.layers:
        stored, gap, soft = layer.weight.detach(), 0.0, 0.0
        if layer.active:
            effective = pruner.method.effective_weight(layer, stored).float()
            hard = pruner.method.hard_weight(layer, stored, pruner.method.keep(layer)).float()
            gap = float((effective - hard).norm() / effective.norm().clamp(min=1e-30))
            mask = (effective / stored.float()).abs()
            soft = float(((mask > 0.1) & (mask < 0.9)).float().mean())
        cut = layer.state.get("cut")
        tau = pruner.method.temperature_of(layer)
        rows.append(
            {
                "name": layer.name,
                "cut": None if cut is None else float(squared_cut(cut).sqrt()),
                "temperature": None if tau is None else float(tau),
                "gap": gap,
                "soft_mask": soft,
            }
        )
    import pandas as pd

    return pd.DataFrame(rows)
