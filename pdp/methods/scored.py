"""Methods with a trainable score for every unit, which is kept or pruned by rank; the gradient is straight-through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member
from pdp.methods import method


class ScoredMethod(method.Method):
    """W * B with B from the ranks of the scores S; backward dL/dS = dL/dW~ * W and dL/dW = dL/dW~ * B."""

    needs_attach = True
    comparable = True

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        for layer in layers:
            self.extras[layer.name] = nn.Parameter(torch.zeros_like(self.pattern.saliency(layer)))

    def score_rate(self) -> float | None:
        """The scores' learning rate; None means the recipe's."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": list(self.extras.values()), "name": "scores", "weight_decay": 0.0}
        if self.score_rate() is not None:
            group["lr"] = self.score_rate()
        return [group]

    def saliency(self, layer: Layer) -> Tensor:
        return self.extras[layer.name].detach() if layer.name in self.extras else self.pattern.saliency(layer)

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        scores = self.extra(layer, weight)
        mask = layer.state["keep"] + (scores - scores.detach())
        return (weight * self.pattern.spread(mask, layer, member or layer.members[0], weight)).to(weight.dtype)

    def keep(self, layer: Layer) -> Tensor:
        return layer.state["keep"] if "keep" in layer.state else super().keep(layer)
