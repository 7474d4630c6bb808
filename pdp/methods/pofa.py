"""POFA: prune once for all (Zafrir et al. 2021, IntelLabs): prune while pre-training, lock the zeros, fine-tune."""

from __future__ import annotations

from pdp.methods import method
from pdp.methods.held import LockedMethod
from pdp.methods.options import PofaOptions


class Method(LockedMethod):
    """prune: magnitude pruning, the same share in every layer, on a cubic schedule; meant to have a teacher.

    finetune: the zeros that the model came with are its mask from the first step to the last (pattern lock), and each
    layer's share is what they say. Raises `Refusal` for a model without zeros.
    """

    schedule = "cubic"
    allocation = "uniform"
    options: PofaOptions

    @property
    def locked(self) -> bool:
        return self.options.stage == "finetune"

    @property
    def no_zeros(self) -> str:
        return "method.stage=finetune locks the zeros of model.pretrained, which has none: prune it first"

    def due(self, moment: method.Moment) -> bool:
        if self.options.update_every is None or self.locked:
            return super().due(moment)
        if moment.fraction == self.fraction:
            return False
        return moment.final or moment.step % self.plan.steps_of(self.options.update_every, "method.update_every") == 0
