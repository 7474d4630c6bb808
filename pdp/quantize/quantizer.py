"""Quantizes a model in training: from when on, and with which ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pdp.errors import Refusal
from pdp.layers import Site
from pdp.quantize.bias import foldable, shipped_biases
from pdp.quantize.fake import ACTIVATION_LEVELS, fake_quantize, weight_bound, weight_scale
from pdp.quantize.frozen import Frozen
from pdp.quantize.hooks import ActivationHook
from pdp.quantize.options import Int4wOptions, QuantizeOptions
from pdp.quantize.points import ActivationPoint, WeightPoint, find_activations, find_products, find_weights
from pdp.quantize.running_ranges import LEAST_SCALE, RunningRanges
from pdp.schedule.time import Time

LEAD = 10  # steps in which ranges are observed before quantization begins; one epoch if steps are unknown
_MOST = 0.1  # largest gradient of a log scale: all numbers outside a range contribute at once


class Quantizer:
    """Fake quantization of a model's weights and activations, from `options.start` of a run on.

    A weight's range is that of the effective weight in every forward. An activation's range is a moving average of the
    smallest and largest number of each step, over all processes; it does not change between two steps or in evaluation.
    With ranges=learned these are only the start values, and the scales are trained from there. What has no range when
    that begins, because no step has reached it, gets its start value from what the first epoch that reaches it saw. An
    output whose weights were all zero keeps the range of its effective weights: those it begins with say nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Int4wOptions,
        epochs: int,
        steps_per_epoch: int | None = None,
        example_input: Any = None,
    ):
        self.options = options
        self.bits = options.weight_bits
        time = Time.parse(options.start, "quantize.start")
        self.by_step = bool(steps_per_epoch)
        total = epochs * steps_per_epoch if steps_per_epoch else epochs
        self.start = time.steps(epochs, steps_per_epoch) if steps_per_epoch else time.epochs(epochs)
        if self.start >= total:
            raise Refusal(
                f"quantize.start={options.start} is {'step' if self.by_step else 'epoch'} {self.start} of a run of "
                f"{total}, which leaves nothing to train with quantized numbers: give an earlier time"
            )
        self.weights, self.skipped = find_weights(model, options.exclude)
        self.activations: list[ActivationPoint] = []
        self.norms: dict[str, str] = {}  # the norm that is folded into a convolution, both by name
        if options.activation_bits < 32:
            products = find_products(model, self.weights, example_input)
            self.activations = find_activations(model, self.weights, products)
            names = {id(module): name for name, module in model.named_modules()}
            self.norms = {names[key]: names[id(norm)] for key, norm in foldable(products).items()}
        count = len(self.activations)
        device = self.weights[0].tensor.device
        self.ranges = RunningRanges(count, device)
        self.ready = [False] * count  # which activations have a range
        self.observing = self.active = False
        self.suspended = False
        self.extras: dict[str, nn.Parameter] = {}  # ranges=learned: log of each scale relative to its start value
        self.first: dict[str, Tensor] = {}  # ranges=learned: the start values
        self.empty: dict[str, Tensor] = {}  # ranges=learned: the outputs of a weight that were zero when that began
        self.fixed: Tensor | None = None  # ranges=learned: `ready` as a tensor, once learning has begun
        if self.learned:
            for weight in self.weights:
                shape = [1] * weight.tensor.dim()
                shape[weight.axis] = weight.tensor.shape[weight.axis]
                self.extras[weight.parameter] = nn.Parameter(torch.zeros(shape, device=device))
            if count:
                self.extras["activations"] = nn.Parameter(torch.zeros(count, device=device))
            self.first = {name: torch.ones_like(one) for name, one in self.extras.items()}
        self._observe_from(0)

    @property
    def learned(self) -> bool:
        """Whether the scales are trained."""
        return self.options.ranges == "learned"

    @property
    def holds(self) -> bool:
        """Whether the model now computes with quantized numbers."""
        return self.active and not self.suspended

    @contextmanager
    def suspend(self) -> Iterator[None]:
        """While this context is open, the model computes with floats, and no range is observed."""
        before, self.suspended = self.suspended, True
        try:
            yield
        finally:
            self.suspended = before

    # ---------------------------------------------------------------- time

    def start_epoch(self, epoch: int) -> None:
        """To be called when an epoch begins."""
        if not self.by_step:
            self._observe_from(epoch)
            self._begin(epoch)
        elif not self.activations:
            self._begin(0)
        self._look_which_are_ready()

    def step(self, steps: int, epoch: int) -> None:
        """To be called after an optimizer step: updates the ranges by what was observed, on all processes alike."""
        moment = steps if self.by_step else epoch
        if self.observing:
            self.ranges.merge(self.fixed)
            if self.fixed is not None:
                self.first["activations"] = self.ranges.scales
        self._observe_from(moment)
        self._begin(moment)

    def _observe_from(self, moment: int) -> None:
        lead = LEAD if self.by_step else 1
        self.observing = bool(self.activations) and moment >= self.start - lead

    def _begin(self, moment: int) -> None:
        if self.active or moment < self.start or (self.activations and not self.ranges.merged):
            return
        self.active = True
        self._look_which_are_ready()
        if self.learned:
            self._begin_to_learn()

    @torch.no_grad()
    def _begin_to_learn(self) -> None:
        for weight in self.weights:
            self.first[weight.parameter] = weight_scale(weight.tensor, self.bits, weight.axis).float()
            others = [one for one in range(weight.tensor.dim()) if one != weight.axis]
            empty = (weight.tensor == 0).amin(others, keepdim=True)
            self.empty |= {weight.parameter: empty} if bool(empty.any()) else {}
        if self.activations:
            self.first["activations"] = self.ranges.scales

    def _look_which_are_ready(self) -> None:
        if self.active and not all(self.ready):
            self._set_ready((self.ranges.filled if self.learned else self.ranges.known).tolist())

    def _set_ready(self, ready: list[bool]) -> None:
        self.ready = ready
        if self.learned and self.active and self.activations:
            self.fixed = torch.tensor(ready, device=self.ranges.average.device)

    # ---------------------------------------------------------------- forwards

    def weight(self, point: WeightPoint, effective: Tensor) -> Tensor:
        """The effective weight, quantized."""
        bound = weight_bound(self.bits)
        if not self.learned:
            scale = weight_scale(effective, self.bits, point.axis)
            return fake_quantize(effective, scale, 0, -bound, bound)
        scale, factor = self._learned(point.parameter, effective.device)
        scale = self._with_empty(point, effective, scale)
        count = effective.numel() // scale.numel()
        return fake_quantize(effective, scale, 0, -bound, bound, factor / math.sqrt(count * bound))

    def _with_empty(self, point: WeightPoint, effective: Tensor, scale: Tensor) -> Tensor:
        """Learned scales, but those of the effective weight where there was nothing to begin from."""
        if point.parameter not in self.empty:
            return scale
        observed = weight_scale(effective, self.bits, point.axis).to(scale.dtype)
        return torch.where(self.empty[point.parameter].to(scale.device), observed, scale)

    def _learned(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """A learned scale, and the factor of its gradient besides LSQ's own.

        The trained number is the logarithm of the scale relative to its start value. With the factor 1 / scale^2 a step
        changes the scale by the same proportion as LSQ's own step would.
        """
        scale = (self.first[name].to(device) * self.extras[name].to(device).exp()).clamp(min=LEAST_SCALE)
        return scale, scale.detach() ** -2

    def activation(self, number: int, values: Tensor, training: bool) -> Tensor:
        """An activation, quantized; in training its range is observed."""
        if self.suspended or not (self.observing or self.active) or not values.is_floating_point():
            return values
        if self.observing and training and torch.is_grad_enabled():
            self.ranges.observe(number, values)
        if not (self.active and self.ready[number]):
            return values
        device = values.device
        if self.learned:
            scales, factors = self._learned("activations", device)
            scale = scales[number]
            factor: Tensor | float = factors[number] / math.sqrt(max(1, values[:1].numel()) * ACTIVATION_LEVELS)
        else:
            scale, factor = self.ranges.scales.to(device)[number], 1.0
        return fake_quantize(values, scale, self.ranges.zero_points.to(device)[number], 0, ACTIVATION_LEVELS, factor)

    # ---------------------------------------------------------------- hooks

    def points_by_place(self) -> list[tuple[Site, WeightPoint]]:
        """Every use of a quantized weight in the model."""
        return [(site, weight) for weight in self.weights for site in weight.sites]

    def attach(self) -> list[RemovableHandle]:
        """Registers the hooks of all activations."""
        return [
            ActivationHook(partial(self.activation, number)).attach(point.module, point.outputs)
            for number, point in enumerate(self.activations)
        ]

    # ---------------------------------------------------------------- training

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's group of learned scales; empty if ranges are observed."""
        return [{"params": list(self.extras.values()), "weight_decay": 0.0}] if self.extras else []

    @torch.no_grad()
    def after_backward(self) -> None:
        """To be called when the gradients of learned scales are averaged over processes: limits them to 0.1."""
        for one in self.extras.values():
            if one.grad is not None:
                one.grad.clamp_(-_MOST, _MOST)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values only."""
        return {
            "name": self.options.name,
            "ranges": self.ranges.average,
            "zero_points": self.ranges.zero_points,
            "merged": self.ranges.merged,
            "ready": list(self.ready),
            "observing": self.observing,
            "active": self.active,
            "extras": {name: one.detach() for name, one in self.extras.items()},
            "first": dict(self.first),
            "empty": dict(self.empty),
            "points": [point.name for point in self.activations],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; raises `Refusal` if it is of another model."""
        if (
            state["points"] != [point.name for point in self.activations]
            or state["extras"].keys() != self.extras.keys()
        ):
            raise Refusal("the quantizer's state is of another model: it has other activations or scales")
        self.observing, self.active = state["observing"], state["active"]
        device, begun = self.ranges.average.device, self.learned and self.active
        learned = state["first"].get("activations") if begun else None
        self.ranges.restore(state["ranges"], state["zero_points"], state["merged"], learned)
        self.first = {name: one.to(device, copy=True) for name, one in state["first"].items()}
        self.empty = {name: one.to(device, copy=True) for name, one in state.get("empty", {}).items()}
        # An earlier version called ready what had the scale of no range.
        there = self.ranges.filled.tolist() if begun else state["ready"]
        self.fixed = None
        self._set_ready([one and other for one, other in zip(state["ready"], there, strict=True)])
        for name, one in self.extras.items():
            one.copy_(state["extras"][name])

    @torch.no_grad()
    def freeze(self, model: nn.Module) -> Frozen:
        """The scales for the present weights of `model`, and the activations' scales and zero points."""
        tensors = dict(model.named_parameters(remove_duplicate=False))
        weights: dict[str, Tensor] = {}
        for point in self.weights:
            tensor = tensors[point.parameter]
            if self.learned and self.active:
                learned = self._learned(point.parameter, tensor.device)[0].detach()
                weights[point.parameter] = self._with_empty(point, tensor, learned).clone()
            else:
                weights[point.parameter] = weight_scale(tensor, self.bits, point.axis)
        activations: dict[str, tuple[Tensor, Tensor]] = {}
        if self.activations:
            scales, zero_points = self.ranges.scales, self.ranges.zero_points
            if self.learned and self.active:
                scales = self._learned("activations", scales.device)[0].detach()
            known = self.ranges.known.tolist()
            for number, one in enumerate(self.activations):
                if known[number]:
                    activations[one.name] = scales[number].clone(), zero_points[number].clone()
        return Frozen(
            self.options.name, self.bits, weights, activations, shipped_biases(model, self.norms, weights, activations)
        )


def make_quantizer(
    model: nn.Module, options: QuantizeOptions, epochs: int, steps_per_epoch: int | None, example_input: Any
) -> Quantizer | None:
    """The quantizer of these options; None for quantize=none."""
    if not isinstance(options, Int4wOptions):
        return None
    return Quantizer(model, options, epochs, steps_per_epoch, example_input)
