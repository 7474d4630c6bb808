"""PDP: parameter-free differentiable pruning (arXiv 2305.11203)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pdp.cut import magnitude_cuts_at
from pdp.layers import Layer
from pdp.mask import soft_prune
from pdp.methods import method
from pdp.methods.options import PdpOptions


class Method(method.Method):
    """The soft mask m(w) = sigmoid((w^2 - t^2) / tau), t found anew at every optimizer step."""

    options: PdpOptions

    def update(self, layers: Sequence[Layer], step: int | None) -> None:
        active = [layer for layer in layers if layer.active]
        cuts = magnitude_cuts_at([layer.weight for layer in active], [layer.pruned for layer in active])
        for layer, cut in zip(active, cuts, strict=True):
            self.replace_state(layer, "cut", cut)

    def effective_weight(self, layer: Layer, weight: Tensor) -> Tensor:
        return soft_prune(weight, self.pattern.spread(layer.state["cut"], weight), self.options.temperature)
