"""AC/DC (Peste et al. 2021, IST-DASLab/ACDC): dense and sparse phases alternate on the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import AcdcOptions


class Method(MaskedMethod):
    """At the start of a sparse phase one magnitude cut over all layers makes the mask; pruned weights become zero.

    At the start of a dense phase every weight trains again, the pruned ones from zero, and momentum is reset. For a
    pruned channel only the filters start from zero; its norm's scale keeps its value, because if both were zero,
    neither would have a gradient.
    """

    schedule = "alternating"
    allocation = "global"
    needs_attach = True
    zeroes = True
    options: AcdcOptions

    @property
    def moves(self) -> bool:
        return self.plan.allocation == "global"

    def clears(self, member: Member) -> bool:
        return member.weighs

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        recycling = not self.fraction and any(self.masked.values())
        if recycling:
            self.masked = {}
            if self.options.reset_momentum and self.optimizer:
                for group in self.optimizer.param_groups:
                    for parameter in group["params"]:
                        self.clear_momentum(parameter, torch.zeros((), device=parameter.device))
        elif self.fraction:
            super().update(layers, moment)
