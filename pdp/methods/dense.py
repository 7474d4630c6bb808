"""No pruning: the dense baseline that every row of a table is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method


class Method(method.Method):
    """Leaves every weight as it is."""

    prunes = False

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        pass

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return weight
