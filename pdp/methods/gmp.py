"""GMP: gradual magnitude pruning (Zhu and Gupta 2017): a hard mask of the largest magnitudes on a cubic schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import GmpOptions


class Method(MaskedMethod):
    """W * B, where the mask B changes only when the share grows, at most once every `update_every` steps.

    With `allocation=global` one cut over all layers is made at every mask update, as in AC/DC's and GraNet's versions
    of GMP; with `method.budget=fixed` each layer's share comes from the first of these cuts, as in PDP.
    """

    schedule = "cubic"
    allocation = "uniform"
    options: GmpOptions

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.updated = 0  # the step of the last mask update

    @property
    def moves(self) -> bool:
        return self.options.budget == "moving" and self.plan.allocation == "global"

    def due(self, moment: method.Moment) -> bool:
        if moment.fraction == self.fraction:
            return False
        every = self.options.update_every
        return every is None or moment.step - self.updated >= every or moment.final or not self.fraction

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        due = self.due(moment)
        super().share_out(layers, moment)
        if due:
            self.updated = moment.step

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"updated": self.updated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.updated = state["updated"]
