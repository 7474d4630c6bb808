"""RigL (Evci et al. 2020, google-research/rigl): constant sparsity, connections dropped and grown in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdp.layers import Layer
from pdp.methods import method
from pdp.methods.options import RiglOptions
from pdp.methods.sparse import SparseMethod


class Method(SparseMethod):
    """Every `update_every` steps until `end`, in each layer: drop a fraction of the kept weights, grow as many.

    The first is at step 0. In the authors' code an update replaces an optimizer's step that is not counted; a run here
    has so many steps as it has, so the step is taken after the update, with the gradient that the new mask lets
    through. The fraction is constant as in the code, or a cosine to zero at `end`. The
    code's noise of 1e-5 on magnitudes is left out: equals fall by index. With `allocation=uniform` the authors leave
    the first layer dense: exclude it.
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
