"""CS: continuous sparsification (Savarese et al. 2020, lolemacs/continuous-sparsification), a trained sigmoid mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.learned import LearnedMethod
from pdp.methods.options import CsOptions


class Method(LearnedMethod):
    """W * sigmoid(beta * s) / sigmoid(s0); in each round beta grows from 1 to its final value; hard mask 1[s > 0].

    The penalty is lambda times the sum of sigmoid(beta * s) / sigmoid(s0), as in the authors' code. At the end of a
    round s becomes min(beta * s, s0) and beta is 1 again. The authors also rewind the weights, to train a ticket anew;
    this is left out here.
    """

    options: CsOptions

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.beta = 1.0
        # Not computed where it is used: a compiled step would end its graph there to read the number.
        self._scale = 1 / float(torch.sigmoid(torch.tensor(self.options.initial, dtype=torch.float64)))

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        if plan.epochs < self.options.rounds:
            raise Refusal(
                f"method.rounds={self.options.rounds} are more than the run's {plan.epochs} epochs: lower "
                "method.rounds or raise recipe.epochs"
            )
        for layer in layers:
            self.extras[layer.name] = nn.Parameter(torch.full_like(self.pattern.saliency(layer), self.options.initial))

    def parameter_groups(self) -> list[dict[str, Any]]:
        group: dict[str, Any] = {"params": list(self.extras.values()), "name": "scores", "weight_decay": 0.0}
        if self.options.score_lr is not None:
            group["lr"] = self.options.score_lr
        return [group]

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if moment.epoch_start:
            self._temper(moment.epoch)
        super().update(layers, moment)

    def _temper(self, epoch: int) -> None:
        """Sets beta = final^(e / (E - 1)) for epoch e of a round of E epochs."""
        length = self.plan.epochs // self.options.rounds
        within = min(epoch - length * min(epoch // length, self.options.rounds - 1), length)
        if epoch and within == 0:
            with torch.no_grad():
                for scores in self.extras.values():
                    scores.mul_(self.beta).clamp_(max=self.options.initial)
        self.beta = self.options.final_temperature ** min(1.0, within / max(1, length - 1))

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        mask = torch.sigmoid(self.beta * self.extra(layer, weight)) * self._scale
        return (weight * self.pattern.spread(mask, layer, member or layer.members[0], weight)).to(weight.dtype)

    def recorded_with(self) -> float:
        return self.beta

    def penalty(self) -> Tensor | None:
        sums = [torch.sigmoid(self.beta * scores).sum() for scores in self.extras.values()]
        return self.options.penalty * self._scale * torch.stack(sums).sum()

    def margin(self, layer: Layer) -> Tensor:
        return self.extras[layer.name].detach()

    def shift(self, layer: Layer, by: float | Tensor) -> None:
        with torch.no_grad():
            self.extras[layer.name].sub_(by)

    def hard_weight(self, layer: Layer, weight: Tensor, keep: Tensor, member: Member | None = None) -> Tensor:
        return super().hard_weight(layer, weight * self._scale, keep, member)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.beta = state["beta"]
