"""ASP (NVIDIA apex, contrib/sparsity): a trained model cut once to N:M, its own recipe again under the mask."""

from __future__ import annotations

from pdp.layers import Layer, input_axis
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import AspOptions


class Method(MaskedMethod):
    """The N largest of each group (the best pattern by kept |W|); gradients and weights are masked from then on.

    Layers whose outputs do not divide by 8, or whose inputs not by 16, stay dense, as in apex.
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
