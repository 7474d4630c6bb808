"""Training under the zeros that the model has: fine-tuning of a pruned model, of any pattern."""

from __future__ import annotations

from collections.abc import Sequence

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import MethodOptions


class LockedMethod(MaskedMethod):
    """While `locked`, W * B with the B that the stored zeros say, from the first step to the last.

    A unit is out if all of it is zero: a weight, or a channel with its bias and norm. Pruned weights get no gradient
    and are zero as they are stored, so that neither decay nor momentum moves them.
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
            layer.pruned = layer.final = layer.units - int(keep.sum())
            layer.active = layer.pruned > 0
            if layer.active:
                self.set_mask(layer, keep)
        if not self.masked:
            raise Refusal(self.no_zeros)

    @property
    def no_zeros(self) -> str:
        """What is said where the model has none."""
        return f"method={self.options.name} holds the zeros of the model, which has none: prune it first"

    def due(self, moment: method.Moment) -> bool:
        return not self.locked and super().due(moment)

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not self.locked:
            super().update(layers, moment)


class Method(LockedMethod):
    """The mask never changes; each layer's share is what its zeros are."""

    schedule = "constant"
    allocation = "held"
    options: MethodOptions

    @property
    def locked(self) -> bool:
        return True
