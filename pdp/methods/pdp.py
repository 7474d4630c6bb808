"""PDP: parameter-free differentiable pruning (arXiv 2305.11203)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.options import PAPERS_TEMPERATURE, PdpOptions
from pdp.patterns.pattern import Pattern, squared_cuts

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
        with self.pattern.measuring():
            cuts = self.pattern.cuts(stale)
            self.replace_states(stale, "cut", cuts)
            if self.relative:
                self.replace_states(stale, "temperature", _relative(cuts, self.kappa))
            held = [layer.state["cut"] for layer in active]
            for key, values in self.pattern.soft_states(active, held, self._temperatures(active)).items():
                self.replace_states(active, key, values)

    def begin_forward(self, layers: Sequence[Layer]) -> None:
        masked = [layer for layer in layers if layer.active and layer.hard_keep is None]
        self.pattern.begin_forward(masked, self._temperatures(masked))

    def end_forward(self) -> None:
        self.pattern.end_forward()

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        if not self.options.detach_cut:
            return _with_live_cut(weight, layer.state["cut"], self._temperature(layer))
        return self.pattern.soft_weight(layer, member or layer.members[0], weight, self._temperature(layer))

    def _temperature(self, layer: Layer) -> Tensor | float:
        return layer.state["temperature"] if self.relative else self.options.temperature

    def _temperatures(self, layers: Sequence[Layer]) -> list[Tensor] | float:
        return [layer.state["temperature"] for layer in layers] if self.relative else self.options.temperature


def _relative(cuts: Sequence[Tensor], kappa: float) -> Sequence[Tensor]:
    """tau = kappa * t^2 of each layer."""
    if not cuts:
        return ()
    return torch._foreach_clamp_min(torch._foreach_mul(squared_cuts(cuts), kappa), _LEAST_TEMPERATURE)


def _with_live_cut(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """m(w) * w with t = (a + b) / 2 differentiable in the weights nearest below and above it; tau is a constant."""
    exact = weight if weight.dtype == torch.float64 else weight.float()
    magnitude = exact.abs()
    below = torch.where(magnitude <= cut, magnitude, -torch.inf).max()
    above = torch.where(magnitude >= cut, magnitude, torch.inf).min()
    live = below + (above - below) * 0.5
    return (torch.sigmoid((exact.square() - live.square()) / temperature) * exact).to(weight.dtype)
