"""RigL (Evci et al. 2020, google-research/rigl): constant sparsity; connections are dropped and grown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.options import RiglOptions
from pdp.methods.sparse import SparseMethod


class Method(SparseMethod):
    """Every `update_every` steps until `end`, each layer drops a fraction of the kept weights and grows as many.

    The first update is at step 0. In the authors' code an update replaces an optimizer step, which is not counted. A
    run here has a fixed number of steps, so the step is taken after the update, with the gradient that the new mask
    lets through. The fraction is constant as in their code, or a cosine to zero at `end`. Their noise of 1e-5 on
    magnitudes is left out: equal magnitudes are dropped by index. With `allocation=uniform` the authors leave the first
    layer dense; use `prune.exclude` for that.
    """

    options: RiglOptions

    def after_backward(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        assert self.optimizer is not None
        every = self.plan.steps_of(self.options.update_every, "method.update_every")
        end = self.plan.steps_of(self.options.end, "method.end")
        if moment.step % every == 0 and moment.step < end:
            fraction = self.options.drop_fraction
            if self.options.anneal == "cosine":
                fraction *= 0.5 * (1 + math.cos(math.pi * moment.step / end))
            for layer in layers:
                if layer.active and layer.weight.grad is not None:
                    self.exchange(layer, int(fraction * (layer.units - layer.pruned)), layer.weight.grad)
        self.mask_gradients(layers)
