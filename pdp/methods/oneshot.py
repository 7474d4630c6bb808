"""One-shot magnitude pruning: train dense, cut once, fine-tune under the mask (channels: Li et al. 2017)."""

from __future__ import annotations

from pdp.methods.masked import MaskedMethod
from pdp.methods.options import OneshotOptions


class Method(MaskedMethod):
    """The whole target in one cut after the schedule's warm-up; pruned weights are zero from then on."""

    schedule = "oneshot"
    allocation = "global"
    zeroes = True
    options: OneshotOptions
