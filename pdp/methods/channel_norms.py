"""The BatchNorm scales (gamma) of a channel layer, from which two methods compute the saliency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member


def norm_scales(layer: Layer) -> list[Member]:
    """The members of the layer that are BatchNorm weights (gamma)."""
    return [
        member
        for member in layer.members
        if not member.weighs
        and member.sites[0].parameter == "weight"
        and isinstance(member.sites[0].module, nn.modules.batchnorm._BatchNorm)
    ]


def scale_saliency(layer: Layer) -> Tensor:
    """The mean |gamma| of each unit over the norms that it has; (units,), float32."""
    total = torch.zeros(layer.units, dtype=torch.float64, device=layer.weight.device)
    count = torch.zeros_like(total)
    for member in norm_scales(layer):
        assert member.units is not None
        units = member.units.to(total.device)
        total.index_add_(0, units, member.tensor.detach().abs().double())
        count.index_add_(0, units, torch.ones_like(units, dtype=total.dtype))
    return (total / count.clamp(min=1)).float()
