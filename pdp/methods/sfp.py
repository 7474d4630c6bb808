"""SFP: soft filter pruning (He et al. 2018): channels are set to zero after every epoch and continue to train."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.options import SfpOptions


class Method(method.Method):
    """Before each epoch the filters with the smallest norms in each layer are set to zero; no gradient is masked.

    The BatchNorms after them keep their weights and biases, as in the authors' code: if a filter and its scale were
    both zero, neither would have a gradient, and the channel could not grow back. Here a channel is pruned with all
    filters coupled to it, while the authors treat each convolution by itself; and the hard model has zeros in the norms
    too.
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
