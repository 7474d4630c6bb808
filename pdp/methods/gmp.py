"""GMP: gradual magnitude pruning (Zhu and Gupta 2017), a hard mask of the largest magnitudes on a cubic schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.options import GmpOptions


class Method(method.Method):
    """W * B, with B changed only when the share grows.

    A masked weight gets no gradient from the task; it returns only if its stored value passes a later, larger cut.
    """

    schedule = "cubic"
    allocation = "uniform"
    options: GmpOptions

    def update(self, layers: Sequence[Layer], step: int | None) -> None:
        every = self.options.update_every
        due = step is None or (every is not None and step % every == 0)
        for layer in layers:
            masked = layer.state.get("masked")
            if layer.active and (masked is None or (due and int(masked) != layer.pruned)):
                self.replace_state(layer, "keep", super().keep(layer))
                layer.state["masked"] = torch.tensor(layer.pruned)

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return weight * self.pattern.spread(layer.state["keep"], layer, member or layer.members[0], weight)

    def keep(self, layer: Layer) -> Tensor:
        return layer.state["keep"] if "keep" in layer.state else super().keep(layer)
