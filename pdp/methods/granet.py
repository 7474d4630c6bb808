"""GraNet (Liu et al. 2021, VITA-Group/GraNet): gradual pruning with neuroregeneration."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pdp.layers import Layer
from pdp.masks.cut import count_pruned
from pdp.methods import method
from pdp.methods.options import GranetOptions
from pdp.methods.sparse import SparseMethod
from pdp.schedule.allocation import erk_budget


class Method(SparseMethod):
    """From a random ERK mask of density d_i, every `update_every` steps: a global cut to a cubic level, an exchange.

    The level is 1 - d_i + (d_i - d_f) * (1 - (1 - k/K)^3). In the exchange each layer drops ceil(p * kept) of its
    smallest weights and grows as many by the dense gradient. p falls by a cosine from 0.5 to 0.005 over the run, and
    the exchange continues after the level has reached its end. The level is the schedule's at the time of the update:
    with schedule.unit=epoch it changes once an epoch, with schedule.unit=step at every update, as in the authors' code.
    """

    schedule = "cubic"
    allocation = "global"
    options: GranetOptions

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gradients: dict[str, Tensor] = {}

    @property
    def takes_budget(self) -> bool:
        return False

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        target = self.plan.target
        if not self.masked and not moment.final:
            first = 1 - self.options.initial_density
            share = first if target is None else min(target, first)
            sizes = [layer.units for layer in layers]
            shapes = [tuple(layer.weight.shape) for layer in layers]
            counts = erk_budget(shapes, sizes, count_pruned(share, sum(sizes)), [one.least for one in layers])
            for layer, count in zip(layers, counts, strict=True):
                layer.pruned, layer.active = count, True
        self.fraction = moment.fraction

    def _due(self, moment: method.Moment) -> bool:
        return moment.step > 0 and moment.step % self._every == 0

    @property
    def _every(self) -> int:
        return self.plan.steps_of(self.options.update_every, "method.update_every")

    def after_backward(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        # The update follows the optimizer's step and needs the gradient of the pruned weights too.
        if (moment.step + 1) % self._every == 0:
            self.gradients = {
                layer.name: layer.weight.grad.detach().clone() for layer in layers if layer.weight.grad is not None
            }
        self.mask_gradients(layers)

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not self.masked:
            super().update(layers, moment)
        elif moment.final:
            self._prune(layers, moment)
        elif not moment.epoch_start and self._due(moment):
            self._prune(layers, moment)
            self._regenerate(layers, moment)

    def _prune(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        """One magnitude cut over all layers to the present level; pruned weights are stored as zeros already."""
        if self.plan.target is None:
            return  # the density stays the initial one
        start = min(self.plan.target, 1 - self.options.initial_density)
        level = start + (self.plan.target - start) * moment.fraction
        if sum(layer.pruned for layer in layers) == count_pruned(level, sum(layer.units for layer in layers)):
            return  # the level is reached already (for good, after the ramp), and only the exchange continues
        self.set_shares(layers, level, "global")
        for layer in layers:
            layer.active = True
            self.set_mask(layer, self.pattern.keep(layer, self.saliency(layer)))

    def _regenerate(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        total = self.plan.epochs * (self.plan.steps_per_epoch or 1)
        if moment.step >= total:
            return  # weights grown now would never be trained
        low, high = self.options.last_rate, self.options.prune_rate
        rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, moment.step / total)))
        for layer in layers:
            if layer.name in self.gradients:
                kept = layer.units - layer.pruned
                self.exchange(layer, math.ceil(rate * kept), self.gradients[layer.name])
        self.gradients = {}
