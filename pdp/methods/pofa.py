"""POFA: prune once for all (Zafrir et al. 2021, IntelLabs): prune while pre-training, lock the zeros, fine-tune."""

from __future__ import annotations

from collections.abc import Sequence

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import PofaOptions


class Method(MaskedMethod):
    """prune: magnitude pruning, the same share in every layer, on a cubic schedule; meant to have a teacher.

    finetune: the zeros that the model came with are its mask from the first step to the last (pattern lock), and each
    layer's share is what they say. Raises `Refusal` for a model without zeros.
    """

    schedule = "cubic"
    allocation = "uniform"
    zeroes = True
    options: PofaOptions

    @property
    def locked(self) -> bool:
        """Whether the mask is that of the zeros there are."""
        return self.options.stage == "finetune"

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
            keep = layer.weight.detach() != 0
            layer.pruned = layer.final = layer.units - int(keep.sum())
            layer.active = layer.pruned > 0
            if layer.active:
                self.set_mask(layer, keep)
        if not self.masked:
            raise Refusal("method.stage=finetune locks the zeros of model.pretrained, which has none: prune it first")

    def due(self, moment: method.Moment) -> bool:
        if self.locked or moment.fraction == self.fraction:
            return False
        if self.options.update_every is None:
            return True
        return moment.final or moment.step % self.plan.steps_of(self.options.update_every, "method.update_every") == 0

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not self.locked:
            super().update(layers, moment)
