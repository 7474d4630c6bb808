"""PDP: parameter-free differentiable pruning (arXiv 2305.11203)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.fused_mask import fused_prune
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

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        active = [layer for layer in layers if layer.active]
        if moment.epoch_start or moment.final or moment.step % self.options.refresh == 0:
            stale = active
        else:
            stale = [layer for layer in active if "cut" not in layer.state]
        for layer, cut in zip(stale, self.pattern.cuts(stale), strict=True):
            self.replace_state(layer, "cut", cut)
            if self.relative:
                tau = (self.kappa * squared_cut(cut)).clamp(min=_LEAST_TEMPERATURE)
                self.replace_state(layer, "temperature", tau)
        for layer in active:
            for key, value in self.pattern.soft_state(layer, layer.state["cut"], self._temperature(layer)).items():
                self.replace_state(layer, key, value)

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        if not self.options.detach_cut:
            return _with_live_cut(weight, layer.state["cut"], self._temperature(layer))
        if self.options.fused:
            return fused_prune(weight, layer.state["cut"], self._temperature(layer))
        return self.pattern.soft_weight(layer, member or layer.members[0], weight, self._temperature(layer))

    def _temperature(self, layer: Layer) -> Tensor | float:
        return layer.state["temperature"] if self.relative else self.options.temperature


def _with_live_cut(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """m(w) * w with t = (a + b) / 2 differentiable in the weights nearest below and above it; tau is a constant."""
    exact = weight if weight.dtype == torch.float64 else weight.float()
    magnitude = exact.abs()
    below = torch.where(magnitude <= cut, magnitude, -torch.inf).max()
    above = torch.where(magnitude >= cut, magnitude, torch.inf).min()
    live = below + (above - below) * 0.5
    return (torch.sigmoid((exact.square() - live.square()) / temperature) * exact).to(weight.dtype)
