"""SFP: soft filter pruning (He et al. 2018): channels are zeroed after every epoch and go on training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.options import SfpOptions


class Method(method.Method):
    """Before each epoch the filters of the smallest norms in each layer become zero; no gradient is masked.

    The norms behind them keep their weights and biases, as in the authors' code: a filter and a scale that are both
    zero have no gradient, and the channel could not grow back. Here a channel goes with all filters coupled to it,
    where the authors zero each convolution's own; and the hard model has zeros in the norms too.
    """

    schedule = "constant"
    allocation = "uniform"
    options: SfpOptions

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not moment.epoch_start:
            return
        for layer in layers:
            keep = super().keep(layer)
            for member in (one for one in layer.members if one.weighs):
                member.tensor.mul_(self.pattern.spread(keep, layer, member, member.tensor))

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return weight
