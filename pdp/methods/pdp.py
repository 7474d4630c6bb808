"""PDP: parameter-free differentiable pruning (arXiv 2305.11203)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.methods.options import PdpOptions
from pdp.patterns.pattern import Pattern, squared_cuts
from pdp.schedule.annealing import annealed, progress_of
from pdp.schedule.time import Time

# Below this tau = kappa * t^2 the mask is binary in float32, whatever the weights are.
_LEAST_TEMPERATURE = 1e-24


class Method(method.Method):
    """The soft mask m(w) = sigmoid((w^2 - t^2) / tau), with t found anew at every optimizer step.

    tau is a number (absolute), kappa t^2 of each layer (relative), or trained (learned: its logarithm, one per layer).
    With `anneal`, the number or kappa changes to its end value over `anneal_share` of the rest of the run once the
    target is reached, or from a given time on. With `budget=moving` and `allocation=global` one cut over all layers is
    made whenever the share changes, and at the start of each epoch after that.
    """

    options: PdpOptions

    def __init__(self, options: PdpOptions, pattern: Pattern):
        super().__init__(options, pattern)
        mode = options.mode(pattern.temperature_mode)
        self.relative, self.learned = mode == "relative", mode == "learned"
        self.kappa = pattern.kappa if options.kappa is None else options.kappa
        self.annealing_start: float | None = None  # in epochs, as soon as it is known
        self.annealing = 0.0  # progress of the annealing in [0, 1]
        self.epoch_steps: int | None = None  # steps per epoch, counted if they were not given
        self.shared_out = -1.0  # the fraction at which the shares were last set

    @property
    def needs_attach(self) -> bool:  # type: ignore[override]
        """Whether the logarithm of tau is trained."""
        return self.learned

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        if self.learned:
            for layer in layers:
                start = torch.tensor(math.log(self.options.temperature), device=layer.stored.device)
                self.extras[layer.name] = nn.Parameter(start)

    def parameter_groups(self) -> list[dict[str, Any]]:
        if not self.learned:
            return []
        group: dict[str, Any] = {
            "params": list(self.extras.values()),
            "name": "temperatures",
            "weight_decay": self.options.temperature_decay,
        }
        if self.options.temperature_lr is not None:
            group["lr"] = self.options.temperature_lr
        return [group]

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        moves = self.options.budget == "moving" and self.plan.allocation == "global" and self.plan.target is not None
        if not moves or not moment.fraction:
            super().share_out(layers, moment)
        elif moment.fraction != self.shared_out or moment.epoch_start:
            assert self.plan.target is not None
            self.set_shares(layers, moment.fraction * self.plan.target)
        self.shared_out = moment.fraction

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        self._anneal(moment)
        active = [layer for layer in layers if layer.active]
        if moment.epoch_start or moment.final or moment.step % self.options.refresh == 0:
            stale = active
        else:
            stale = [layer for layer in active if "cut" not in layer.state]
        with self.pattern.measuring():
            fresh = [layer for layer in stale if "cut" not in layer.state]
            cuts = self.pattern.cuts(stale, [layer.state.get("cut") for layer in stale])
            self.replace_states(stale, "cut", cuts)
            self._set_temperatures(active, stale, cuts)
            self._begin_learning(fresh)
            present = [layer.state["cut"] for layer in active]
            for key, values in self.pattern.soft_states(active, present, self._temperatures(active)).items():
                self.replace_states(active, key, values)

    def _anneal(self, moment: method.Moment) -> None:
        """The progress of the annealing at the next step."""
        if self.options.anneal == "none":
            return
        if moment.epoch_start and moment.epoch and moment.step:
            self.epoch_steps = moment.step // moment.epoch
        steps = self.plan.steps_per_epoch or self.epoch_steps
        now = moment.step / steps if steps else float(moment.epoch)
        if self.annealing_start is None:
            if self.options.anneal_from != "target":
                time = Time.parse(self.options.anneal_from, "method.anneal_from")
                if time.unit == "it":
                    self.annealing_start = time.value / steps if steps else None
                else:
                    self.annealing_start = time.value * (1 if time.unit == "ep" else self.plan.epochs)
            elif moment.fraction >= 1:
                self.annealing_start = now
        if moment.final:
            return  # the final masks are the ones that were trained with
        if self.annealing_start is not None:
            self.annealing = progress_of(now, self.annealing_start, self.plan.epochs, self.options.anneal_share)

    def _set_temperatures(self, active: Sequence[Layer], stale: Sequence[Layer], cuts: Sequence[Tensor]) -> None:
        if self.learned or not self.held:
            return
        anneals = self.options.anneal
        if not self.relative:
            assert self.options.temperature_end is not None
            tau = annealed(anneals, self.options.temperature, self.options.temperature_end, self.annealing)
            kinds = {_kind_of(layer.stored) for layer in active}
            taus = {kind: torch.full((), tau, device=kind[0], dtype=kind[1]) for kind in kinds}
            values = [taus[_kind_of(layer.stored)] for layer in active]
            self.replace_states(active, "temperature", values)
        elif anneals == "none":
            self.replace_states(stale, "temperature", _relative(cuts, self.kappa))
        else:
            assert self.options.kappa_end is not None
            kappa = annealed(anneals, self.kappa, self.options.kappa_end, self.annealing)
            held = [layer.state["cut"] for layer in active]
            self.replace_states(active, "temperature", _relative(held, kappa))

    def _begin_learning(self, fresh: Sequence[Layer]) -> None:
        """If kappa is given, tau starts at kappa t^2 with the t of the layer's first cut."""
        if self.learned and self.options.kappa is not None and fresh:
            taus = _relative([layer.state["cut"] for layer in fresh], self.options.kappa)
            for layer, tau in zip(fresh, taus, strict=True):
                self.extras[layer.name].data.copy_(tau.log())

    @property
    def held(self) -> bool:
        """Whether each layer's temperature is a tensor that is updated in place, so that nothing is recompiled."""
        return self.relative or self.options.anneal != "none"

    def begin_forward(self, layers: Sequence[Layer]) -> None:
        # One matrix of a stack is made with the others of its parameter, when its module computes.
        shared = [layer for layer in layers if layer.active and layer.hard_keep is None and not layer.stacked]
        masked = [] if self.learned else shared
        self.pattern.begin_forward(masked, self._temperatures(masked))

    def end_forward(self) -> None:
        self.pattern.end_forward()

    def prepared_weight(self, member: Member, weight: Tensor) -> Tensor | None:
        return self.pattern.prepared(member, weight) if self.options.detach_cut and not self.learned else None

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        if self.learned:
            cut = self.pattern.spread(layer.state["cut"], layer, member or layer.members[0], weight)
            return _with_learned_temperature(weight, cut, self.extras[layer.name])
        if not self.options.detach_cut:
            return _with_live_cut(weight, layer.state["cut"], self._temperature(layer))
        return self.pattern.soft_weight(layer, member or layer.members[0], weight, self._temperature(layer))

    def temperature_of(self, layer: Layer) -> Tensor | float | None:
        """The present temperature of the layer's mask; None before its first cut."""
        if self.learned:
            return self.extras[layer.name].detach().exp()
        return layer.state.get("temperature") if self.held else self.options.temperature

    def _temperature(self, layer: Layer) -> Tensor | float:
        return layer.state["temperature"] if self.held else self.options.temperature

    def _temperatures(self, layers: Sequence[Layer]) -> list[Tensor] | float:
        if self.learned or not self.held:
            return self.options.temperature
        return [layer.state["temperature"] for layer in layers]

    def state_dict(self) -> dict[str, Any]:
        own = {"start": self.annealing_start, "done": self.annealing, "epoch_steps": self.epoch_steps}
        return super().state_dict() | {"annealing": own, "shared_out": self.shared_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        own = state.get("annealing", {})
        self.annealing_start, self.annealing = own.get("start"), own.get("done", 0.0)
        self.epoch_steps = own.get("epoch_steps")
        self.shared_out = state.get("shared_out", -1.0)


def _kind_of(weight: Tensor) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a weight's temperature."""
    return weight.device, torch.float64 if weight.dtype == torch.float64 else torch.float32


def _relative(cuts: Sequence[Tensor], kappa: float) -> Sequence[Tensor]:
    """tau = kappa * t^2 for each layer."""
    if not cuts:
        return ()
    return torch._foreach_clamp_min(torch._foreach_mul(squared_cuts(cuts), kappa), _LEAST_TEMPERATURE)


def _with_live_cut(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """m(w) * w where t = (a + b) / 2 is differentiable in a and b, the weights nearest to it; tau is a constant."""
    exact = weight if weight.dtype == torch.float64 else weight.float()
    magnitude = exact.abs()
    below = torch.where(magnitude <= cut, magnitude, -torch.inf).max()
    above = torch.where(magnitude >= cut, magnitude, torch.inf).min()
    live = below + (above - below) * 0.5
    return (torch.sigmoid((exact.square() - live.square()) / temperature) * exact).to(weight.dtype)


def _with_learned_temperature(weight: Tensor, cut: Tensor, log_temperature: Tensor) -> Tensor:
    """m(w) * w, also differentiable in log tau: d(m w)/d log tau = -z m (1 - m) w with z = (w^2 - t^2) / tau."""
    exact = weight if weight.dtype == torch.float64 else weight.float()
    # A cut of -inf keeps every weight and +inf none; an infinite z would make the gradient NaN.
    bounded = torch.where(cut.isinf(), torch.zeros_like(cut), cut).to(exact.dtype)
    z = (exact.square() - bounded.square()) * torch.exp(-log_temperature.to(exact.dtype))
    mask = torch.where(cut.isinf(), (cut < 0).to(exact.dtype), torch.sigmoid(z.clamp(-60.0, 60.0)))
    return (mask * exact).to(weight.dtype)
