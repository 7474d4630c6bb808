"""ASP (NVIDIA apex, contrib/sparsity): cuts a trained model once to N:M and trains it again under the mask."""

from __future__ import annotations

from pdp.layers import Layer, input_axis
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import AspOptions


class Method(MaskedMethod):
    """Keeps the N largest |W| of each group (apex's best pattern); from then on gradients and weights are masked.

    Layers stay dense, as in apex, if their number of outputs is not divisible by 8 or that of inputs not by 16.
    """

    schedule = "constant"
    zeroes = True
    options: AspOptions

    def refuses(self, layer: Layer) -> str | None:
        outputs, inputs = layer.weight.shape[:2]
        if not input_axis(layer.sites[0]):
            outputs, inputs = inputs, outputs
        if self.options.all_layers or (outputs % 8 == 0 and inputs % 16 == 0):
            return None
        return f"ASP leaves {outputs} outputs of {inputs} inputs dense"
