"""SR-STE (Zhou et al. 2021, aojunzz/NM-sparsity): N:M from the first step, with pruned weights pulled towards zero."""

from __future__ import annotations

from collections.abc import Sequence

from pdp.layers import Layer
from pdp.methods import dnw, method
from pdp.methods.options import SrsteOptions


class Method(dnw.Method):
    """Keeps the N largest |W| of each group at every step; g = dL/dW~ + lambda * (1 - B) * W, plus the weight decay.

    The pull is added once per step, however many micro-batches it has. Two layers differ from the authors' code, in
    which every convolution and no linear layer is sparse: as with all methods here the stem stays dense, and a
    classifier whose inputs divide by M is pruned unless `prune.exclude` names it.
    """

    needs_attach = True  # without `after_backward` it would silently be DNW
    options: SrsteOptions  # type: ignore[assignment]

    def after_backward(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for layer in layers:
            weight = layer.weight
            if layer.active and weight.grad is not None:
                pruned = ~self.pattern.spread(layer.state["keep"], layer, layer.members[0], weight)
                weight.grad.add_(weight.detach() * pruned, alpha=self.options.decay)
