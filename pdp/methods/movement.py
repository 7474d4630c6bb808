"""Movement pruning (Sanh et al. 2020): scores grow where weights move away from zero; hard (MvP) or soft (SMvP)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.options import MovementOptions
from pdp.methods.scored import ScoredMethod

_LEAST_KEPT = 0.005  # of the units of every tensor, in the soft variant


class Method(ScoredMethod):
    """Prunes by trained scores, by rank (variant hard) or by a threshold (variant soft).

    hard: each layer keeps its top scores, whose number follows a cubic schedule; the mask is made anew at every step.
    With `allocation=global` one cut over all scores gives the numbers, made whenever the schedule changes (the authors'
    global top-k makes it every 25 steps).

    soft: units with sigmoid(S) above a threshold are kept. The threshold grows to `threshold` on the same schedule, and
    so does the weight of the penalty, which is the mean of sigmoid(S) over each layer and then over layers. The shares
    are learned; a target is met by one cut over all scores at the end.
    """

    schedule = "cubic"
    allocation = "uniform"
    options: MovementOptions

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.fraction = 0.0
        self.ended = False

    @property
    def exact(self) -> bool:
        return self.options.variant == "hard"

    @property
    def takes_budget(self) -> bool:
        return self.exact

    @property
    def needs_target(self) -> bool:
        return self.exact

    def score_rate(self) -> float | None:
        return self.options.score_lr

    def recorded_with(self) -> float | None:
        return None if self.exact else self.fraction  # for the penalty

    def clipped(self) -> list[nn.Parameter]:
        return list(self.extras.values())

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        self.fraction = moment.fraction
        self.ended = moment.final and self.plan.target is not None
        if self.exact:
            super().share_out(layers, moment)
            if self.plan.allocation == "global" and self.plan.target is not None:
                self.set_shares(layers, moment.fraction * self.plan.target)
        elif self.ended and self.plan.target is not None:
            self.set_shares(layers, self.plan.target, "global")
        for layer in layers:
            layer.active = True

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for layer in layers:
            if not self.exact and not self.ended:
                layer.pruned = self._under_threshold(layer)
            self.replace_state(layer, "keep", self.pattern.keep(layer, self.saliency(layer)))

    def _under_threshold(self, layer: Layer) -> int:
        threshold = self.fraction * self.options.threshold
        above = torch.sigmoid(self.saliency(layer)) > threshold
        under = self.pattern.removed(layer, above) if threshold else 0
        if self.pattern.implied_share is not None:
            return min(under, layer.final)
        return min(under, layer.units - max(layer.least, math.ceil(_LEAST_KEPT * layer.units)))

    def penalty(self) -> Tensor | None:
        if self.exact or not self.fraction:
            return None
        means = torch.stack([torch.sigmoid(scores).mean() for scores in self.extras.values()])
        return self.options.penalty * self.fraction * means.mean()

    def state_dict(self) -> dict:
        return super().state_dict() | {"fraction": self.fraction, "ended": self.ended}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.fraction, self.ended = state["fraction"], state["ended"]
