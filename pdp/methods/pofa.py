"""POFA: prune once for all (Zafrir et al. 2021, IntelLabs): prunes in pre-training, locks the zeros, fine-tunes."""

from __future__ import annotations

from pdp.methods import method
from pdp.methods.held import LockedMethod
from pdp.methods.options import PofaOptions


class Method(LockedMethod):
    """Magnitude pruning (stage prune) and fine-tuning under fixed zeros (stage finetune).

    prune: the same share in every layer, on a cubic schedule; meant to be used with a teacher.

    finetune: the zeros that the model came with are its mask from the first to the last step (pattern lock), and
    determine each layer's share. Raises `Refusal` for a model without zeros.
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
