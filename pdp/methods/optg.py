"""OptG: optimizing gradient-driven criteria (Zhang et al. 2022, zyxxmu/OptG): scores, cut a hundred times per run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.options import OptgOptions
from pdp.methods.scored import ScoredMethod

# The scores' rate is never zero, as in the authors' sigmoid: scores must learn their ranks while nothing is pruned yet.
# Their scale does not matter.
_LEAST_RATE = 1e-6


class Method(ScoredMethod):
    """One cut over all scores every `update_every`, at share R * sigmoid(e - E/2); between cuts the mask is fixed.

    The scores' learning rate is the weights' times the same sigmoid, without weight decay. Before the end, units whose
    scores are equal to a kept one are not pruned, as in the authors' comparison; so scores that have learned nothing
    prune nothing.
    """

    schedule = "sigmoid"
    unit: ClassVar[str] = "step"
    options: OptgOptions

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.fraction = -1.0  # the fraction at which the present masks were made
        self.spared = False  # whether they prune fewer units than asked, because of equal scores
        self.rates: list[tuple[dict[str, Any], float]] = []  # the rates of the scores' groups, as set by the loop

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for layer in layers:
            layer.active = True  # the scores learn from the first step on

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for group, rate in self.rates:
            group["lr"] = rate
        self.rates = []
        # The final mask is the one that was trained with, unless the target was not reached.
        short = moment.fraction != self.fraction or self.spared
        if short if moment.final else self._due(moment):
            self.fraction = moment.fraction
            self._cut(layers, moment)

    def _due(self, moment: method.Moment) -> bool:
        steps = self.plan.steps_per_epoch
        if moment.epoch_start and (self.fraction < 0 or not steps):
            return True
        if not steps:
            return False
        if not moment.epoch_start and moment.step % steps == 0:
            return False  # an epoch is evaluated with its own masks; the cut at its end is the next one's start
        return moment.step % self.plan.steps_of(self.options.update_every, "method.update_every") == 0

    def _cut(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        together = self.plan.allocation == "global" and self.plan.target is not None
        super().share_out(layers, moment)
        if together:
            assert self.plan.target is not None
            self.set_shares(layers, moment.fraction * self.plan.target)
        scores = [self.saliency(layer) for layer in layers]
        keeps = [self.pattern.keep(layer, one) for layer, one in zip(layers, scores, strict=True)]
        wanted = sum(self.pattern.removed(layer, keep) for layer, keep in zip(layers, keeps, strict=True))
        if not moment.final:
            keeps = self._sparing_equals(scores, keeps, together)
        for layer, keep in zip(layers, keeps, strict=True):
            layer.pruned, layer.active = self.pattern.removed(layer, keep), True
            self.replace_state(layer, "keep", keep)
        self.spared = sum(layer.pruned for layer in layers) < wanted

    def _sparing_equals(self, scores: Sequence[Tensor], keeps: Sequence[Tensor], together: bool) -> list[Tensor]:
        """The masks without the pruned units whose score is equal to that of a kept unit.

        For N:M, which has a cut per group, a layer is left unpruned if all its scores are equal.
        """
        if self.pattern.implied_share is not None:
            return [keep | (one == one.max()).all() for one, keep in zip(scores, keeps, strict=True)]
        cuts = [
            one.new_tensor(-torch.inf) if keep.all() else one[~keep].max()
            for one, keep in zip(scores, keeps, strict=True)
        ]
        if together:
            cuts = [torch.stack([cut.to(cuts[0].device) for cut in cuts]).max()] * len(cuts)
        cuts = [cut.to(one.device) for cut, one in zip(cuts, scores, strict=True)]
        tied = [bool(((one == cut) & keep).any()) for one, cut, keep in zip(scores, cuts, keeps, strict=True)]
        spared = [any(tied)] * len(tied) if together else tied
        return [
            keep | (one == cut) if spare else keep
            for one, cut, keep, spare in zip(scores, cuts, keeps, spared, strict=True)
        ]

    def after_backward(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            if group.get("name") == "scores":
                # For this step only: in a loop that does not set the rate before each step, it would shrink to zero.
                self.rates.append((group, group["lr"]))
                group["lr"] *= max(self.fraction, _LEAST_RATE)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"fraction": self.fraction, "spared": self.spared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.fraction, self.spared = state["fraction"], state["spared"]
