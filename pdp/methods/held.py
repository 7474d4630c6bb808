"""Training under the zeros that the model has: fine-tuning a model that was pruned before, for any pattern."""

from __future__ import annotations

from collections.abc import Sequence

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import MethodOptions


class LockedMethod(MaskedMethod):
    """While `locked`, W * B from the first to the last step, where B is 0 for the units that are zero in the model.

    A unit is pruned if all of it is zero: a weight, or a channel with its bias and norm. Pruned weights get no gradient
    and are stored as zeros, so that neither weight decay nor momentum changes them.
    """

    zeroes = True

    @property
    def needs_target(self) -> bool:
        return not self.locked

    @property
    def takes_budget(self) -> bool:
        return not self.locked

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        if not self.locked:
            return
        for layer in layers:
            keep = self.pattern.alive(layer)
            layer.pruned = layer.final = self.pattern.removed(layer, keep)
            layer.active = layer.pruned > 0
            if layer.active:
                self.set_mask(layer, keep)
        if not self.masked:
            raise Refusal(self.no_zeros)

    @property
    def no_zeros(self) -> str:
        """The words of the refusal if the model has no zeros."""
        return f"method={self.options.name} holds the zeros of the model, which has none: prune it first"

    def due(self, moment: method.Moment) -> bool:
        return not self.locked and super().due(moment)

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not self.locked:
            super().update(layers, moment)


class Method(LockedMethod):
    """The mask never changes; each layer's share is the share of its zeros."""

    schedule = "constant"
    allocation = "held"
    options: MethodOptions

    @property
    def locked(self) -> bool:
        return True
