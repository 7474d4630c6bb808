"""Network slimming (Liu et al. 2017): BatchNorm scales trained under an L1 penalty, then one cut over all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pdp.layers import Layer
from pdp.methods.channel_norms import norm_scales, scale_saliency
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import SlimmingOptions


class Method(MaskedMethod):
    """Until the cut, the loss includes lambda * sum |gamma| over all norms of prunable channels; then the smallest go.

    A channel with several norms counts with the mean of their |gamma|. The authors fine-tune the smaller network in a
    separate run; here the rest of the run is the fine-tuning.
    """

    schedule = "oneshot"
    allocation = "global"
    comparable = True
    zeroes = True
    options: SlimmingOptions

    def begin(self, layers, plan) -> None:
        super().begin(layers, plan)
        self.scales = [member for layer in layers for member in norm_scales(layer)]

    def refuses(self, layer: Layer) -> str | None:
        return None if norm_scales(layer) else "no BatchNorm scales it"

    def saliency(self, layer: Layer) -> Tensor:
        return scale_saliency(layer)

    def recorded_with(self) -> bool:
        return bool(self.fraction)

    def penalty(self) -> Tensor | None:
        if self.fraction:
            return None
        return self.options.penalty * torch.stack([member.tensor.abs().sum() for member in self.scales]).sum()
