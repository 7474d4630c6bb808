"""OptG: optimizing gradient-driven criteria (Zhang et al. 2022, zyxxmu/OptG), scores cut once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.options import OptgOptions
from pdp.methods.scored import ScoredMethod


class Method(ScoredMethod):
    """One cut over all scores an epoch, at R_e = R * sigmoid(beta * (e - E/2)); the mask holds for the epoch.

    The scores' rate is the weights' times the same sigmoid, without weight decay.
    """

    schedule = "sigmoid"
    options: OptgOptions

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.fraction = 0.0  # at which the masks that hold were made
        self.due = False
        self.rates: list[tuple[dict[str, Any], float]] = []  # of the scores' groups, as the loop set them

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        # What ships is the mask that the last epoch was trained with, unless the target was not reached.
        self.due = moment.epoch_start or (moment.final and moment.fraction != self.fraction)
        if not self.due:
            return
        self.fraction = moment.fraction
        super().share_out(layers, moment)
        if self.plan.allocation == "global" and self.plan.target is not None:
            self.set_shares(layers, moment.fraction * self.plan.target)
        for layer in layers:
            layer.active = True  # the scores learn from the first step on

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for group, rate in self.rates:
            group["lr"] = rate
        self.rates = []
        if self.due:
            self.due = False
            for layer in layers:
                self.replace_state(layer, "keep", self.pattern.keep(layer, self.saliency(layer)))

    def after_backward(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            if group.get("name") == "scores":
                # Only for this step: a loop that does not set the rate at each would see it shrink to nothing.
                self.rates.append((group, group["lr"]))
                group["lr"] *= moment.fraction

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"fraction": self.fraction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fraction = state["fraction"]
