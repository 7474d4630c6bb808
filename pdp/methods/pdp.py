"""PDP: parameter-free differentiable pruning (arXiv 2305.11203)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.options import PAPERS_TEMPERATURE, PdpOptions
from pdp.patterns.pattern import Pattern, squared_cut

# Below this tau = kappa * t^2 the mask is binary in float32 whatever the weights.
_LEAST_TEMPERATURE = 1e-24


class Method(method.Method):
    """The soft mask m(w) = sigmoid((w^2 - t^2) / tau), t found anew at every optimizer step."""

    options: PdpOptions

    def __init__(self, options: PdpOptions, pattern: Pattern):
        super().__init__(options, pattern)
        mode = options.temperature_mode
        if mode == "auto":
            # A temperature that somebody chose is meant to hold.
            mode = "absolute" if options.temperature != PAPERS_TEMPERATURE else pattern.temperature_mode
        self.relative = mode == "relative"
        self.kappa = pattern.kappa if options.kappa is None else options.kappa

    def update(self, layers: Sequence[Layer], step: int | None) -> None:
        active = [layer for layer in layers if layer.active]
        for layer, cut in zip(active, self.pattern.cuts(active), strict=True):
            if self.relative:
                tau = (self.kappa * squared_cut(cut)).clamp(min=_LEAST_TEMPERATURE)
                self.replace_state(layer, "temperature", tau)
            for key, value in self.pattern.soft_state(layer, cut, self._temperature(layer)).items():
                self.replace_state(layer, key, value)

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return self.pattern.soft_weight(layer, member or layer.members[0], weight, self._temperature(layer))

    def _temperature(self, layer: Layer) -> Tensor | float:
        return layer.state["temperature"] if self.relative else self.options.temperature
