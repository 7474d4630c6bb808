"""One-shot magnitude pruning: dense training, one cut, fine-tuning under the mask (channels: Li et al. 2017)."""

from __future__ import annotations

from pdp.methods.masked import MaskedMethod
from pdp.methods.options import OneshotOptions


class Method(MaskedMethod):
    """Prunes the whole target in one cut after the schedule's warm-up; pruned weights are zero from then on."""

    schedule = "oneshot"
    allocation = "global"
    zeroes = True
    options: OneshotOptions
