"""DNW: discovering neural wirings (Wortsman et al. 2019, allenai/dnw): keeps the largest weights, straight-through."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pdp.layers import Layer, Member
from pdp.masks.straight_through import straight_through
from pdp.methods import method
from pdp.methods.options import DnwOptions


class Method(method.Method):
    """Keeps the largest |W| of each layer at every step, at the same share from the first step on.

    Pruned weights get the gradient that they would get if they were kept, so that they can replace kept ones.
    """

    schedule = "constant"
    allocation = "uniform"
    options: DnwOptions

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for layer in layers:
            if layer.active:
                self.replace_state(layer, "keep", super().keep(layer))

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        keep = self.pattern.spread(layer.state["keep"], layer, member or layer.members[0], weight)
        return straight_through(weight, keep)

    def keep(self, layer: Layer) -> Tensor:
        return layer.state["keep"] if "keep" in layer.state else super().keep(layer)
