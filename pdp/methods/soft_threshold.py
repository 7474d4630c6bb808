"""STR: soft threshold reparameterization (Kusupati et al. 2020, RAIVNLab/STR): one trainable threshold per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.learned import LearnedMethod
from pdp.methods.options import StrOptions

_IDLE = -50.0  # below this, sigmoid(s) prunes nothing


class Method(LearnedMethod):
    """sign(W) * relu(|W| - sigmoid(s)); s decays like the weights, and a more negative start gives less sparsity.

    Not straight-through: a pruned weight gets no gradient, and s gets -sum(sign(W) dL/dW_s) sigmoid'(s) over the kept
    weights.
    """

    options: StrOptions

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        for layer in layers:
            start = torch.tensor(float(self.options.initial), device=layer.weight.device)
            self.extras[layer.name] = nn.Parameter(start)

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": list(self.extras.values()), "name": "thresholds"}
        if self.options.threshold_decay is not None:
            group["weight_decay"] = self.options.threshold_decay
        return [group]

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return torch.sign(weight) * torch.relu(weight.abs() - torch.sigmoid(self.extra(layer, weight)))

    def margin(self, layer: Layer) -> Tensor:
        """The margin logit |W| - s, because a shift of all thresholds s is then a shift of all margins."""
        magnitude = layer.weight.detach().double().abs()
        return torch.special.logit(magnitude.clamp(max=1 - 1e-15)) - self.extras[layer.name].detach().double()

    def steer(self, layers: Sequence[Layer], share: float) -> None:
        # In float64: the authors' thresholds start at -3200, and float32 would lose the last digits of such margins.
        with torch.no_grad():
            middle = float(torch.stack([self.extras[layer.name] for layer in layers]).double().mean())
            for layer in layers:
                extra = self.extras[layer.name]
                extra.sub_(middle)
                if middle < _IDLE and self.optimizer and "momentum_buffer" in self.optimizer.state.get(extra, {}):
                    # Its momentum comes only from the decay of a number in the thousands, and would carry s far beyond
                    # the shift.
                    self.optimizer.state[extra]["momentum_buffer"].zero_()
        super().steer(layers, share)

    def shift(self, layer: Layer, by: float | Tensor) -> None:
        with torch.no_grad():
            self.extras[layer.name].add_(by)

    def hard_weight(self, layer: Layer, weight: Tensor, keep: Tensor, member: Member | None = None) -> Tensor:
        threshold = torch.sigmoid(self.extra(layer, weight).detach())
        # A kept weight close to its threshold must not be rounded to zero, so that counts are exact.
        shrunk = (weight.abs() - threshold).clamp(min=torch.finfo(weight.dtype).tiny)
        return torch.where(keep, torch.sign(weight) * shrunk, torch.zeros((), dtype=weight.dtype, device=weight.device))
