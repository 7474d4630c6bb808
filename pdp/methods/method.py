"""The interface of every pruning method; the pruner calls it, the training loop never does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member
from pdp.methods.options import MethodOptions
from pdp.patterns.pattern import Pattern
from pdp.schedule.time import Time


@dataclass(frozen=True)
class Plan:
    """What a method may know about the run."""

    target: float | None  # the final share of units to prune; None if the run has no target
    allocation: str
    epochs: int
    steps_per_epoch: int | None
    seed: int
    budget: Callable[[float | None, str | None], list[int]]  # (share, allocation) -> pruned units, with present weights

    def steps_of(self, time: str, key: str) -> int:
        """A time from the options in optimizer steps, at least one; refusals name it by `key`."""
        return max(1, Time.parse(time, key).steps(self.epochs, self.steps_per_epoch))

    def epochs_of(self, time: str, key: str) -> int:
        """A time from the options in whole epochs, at least one."""
        return max(1, Time.parse(time, key).epochs(self.epochs))


@dataclass(frozen=True)
class Moment:
    """The moment of training at which the pruner calls the method."""

    epoch: int  # counted from 0
    step: int  # optimizer steps taken so far
    fraction: float  # of the target, from the schedule
    epoch_start: bool = False  # before the epoch's first step
    final: bool = False  # training is over, and the masks become hard


class Method(ABC):
    """Computes the effective weight of a layer from its stored weight, its share and the method's state.

    State that a layer keeps from step to step is in `layer.state`, as tensors under names of the method's own.
    """

    schedule: ClassVar[str] = "linear"  # default schedule and allocation, from the method's paper
    unit: ClassVar[str] = "epoch"  # default unit of the schedule, if the steps per epoch are known
    ramp: ClassVar[str | None] = None  # default ramp, a time; None: the library's
    allocation: ClassVar[str] = "global"
    prunes: ClassVar[bool] = True
    needs_attach: ClassVar[bool] = False  # whether the optimizer must have its parameters before the first step
    calibrates: ClassVar[bool] = False  # whether its mask is made once, from calibration samples
    recordable: ClassVar[bool] = True  # whether a step can be replayed from a CUDA graph (pdp.training.graphs)
    comparable: ClassVar[bool] = False  # whether its saliencies can be compared across layers as they are

    def __init__(self, options: MethodOptions, pattern: Pattern):
        self.options = options
        self.pattern = pattern
        self.optimizer: torch.optim.Optimizer | None = None  # set when the pruner is attached to one
        self.extras: dict[str, nn.Parameter] = {}  # trainable parameters of the method, by layer name

    @property
    def needs_target(self) -> bool:
        """Whether a target share must be given."""
        return True

    @property
    def exact(self) -> bool:
        """Whether the shares are exactly the schedule's, and not learned."""
        return True

    @property
    def takes_budget(self) -> bool:
        """Whether each layer's share can be given (allocation=file), and is not found by the method itself."""
        return True

    @property
    def locked(self) -> bool:
        """Whether the zeros in the model are its mask, so that no share is allocated."""
        return False

    def refuses(self, layer: Layer) -> str | None:
        """Why the method leaves a layer dense, if it does; else None."""
        return None

    def begin(self, layers: Sequence[Layer], plan: Plan) -> None:
        """Called when the layers are known and before training; creates the method's trainable parameters."""
        self.plan = plan

    def share_out(self, layers: Sequence[Layer], moment: Moment) -> None:
        """Sets every layer's number of pruned units, and whether it is active, for the present fraction."""
        for layer in layers:
            layer.pruned = self.pattern.amount(layer, moment.fraction * layer.final)
            layer.active = layer.pruned > 0

    def set_shares(self, layers: Sequence[Layer], share: float, allocation: str | None = None) -> None:
        """Prunes `share` of all units, allocated anew from the present weights; `allocation` None is the run's."""
        for layer, count in zip(layers, self.plan.budget(share, allocation), strict=True):
            layer.pruned, layer.active = count, count > 0

    @abstractmethod
    def update(self, layers: Sequence[Layer], moment: Moment) -> None:
        """Computes new cuts or masks for the present shares.

        Called at the start of an epoch, after each optimizer step, and at the end. `layers` includes inactive ones.
        """

    def settle(self, layers: Sequence[Layer]) -> None:
        """Called before the hard model is evaluated; a method that learns the shares counts them into `pruned`."""
        return None

    def begin_forward(self, layers: Sequence[Layer]) -> None:
        """Called when a forward of the whole model begins, so that what several layers need is computed only once.

        Layers that compute outside of one, as in the recomputation of a checkpoint, are not announced.
        """
        return None

    def end_forward(self) -> None:
        """Called when the forward that began last has ended or raised."""
        return None

    def prepared_weight(self, member: Member, weight: Tensor) -> Tensor | None:
        """`effective_weight`, if the forward that is running has computed it together with others; else None.

        It is asked first, so a method that overrides one of the two overrides both.
        """
        return None

    @abstractmethod
    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        """The weight used in training in place of `weight`, one of the layer's tensors; differentiable."""

    def slope(self, layer: Layer) -> Tensor:
        """d(effective) / d(stored) for each weight: the factor by which its gradient reaches it."""
        weight = layer.weight.detach().clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.effective_weight(layer, weight).sum(), weight, allow_unused=True)
        return torch.zeros_like(weight) if slope is None else slope

    def saliency(self, layer: Layer) -> Tensor:
        """One number per unit from the stored weight; the smallest are pruned."""
        return self.pattern.saliency(layer)

    def keep(self, layer: Layer) -> Tensor:
        """The hard mask of a layer over its units, bool: exactly `layer.pruned` units are False."""
        return self.pattern.keep(layer, self.saliency(layer))

    def hard_weight(self, layer: Layer, weight: Tensor, keep: Tensor, member: Member | None = None) -> Tensor:
        """The final weight in place of `weight`, one of the layer's tensors; exact zeros where `keep` is False."""
        keep = self.pattern.spread(keep, layer, member or layer.members[0], weight)
        return torch.where(keep, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def temperature_of(self, layer: Layer) -> Tensor | float | None:
        """The present temperature of the layer's soft mask; None if it has none."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the method's trainable parameters; what a group does not set is the recipe's."""
        return []

    def extra(self, layer: Layer, weight: Tensor) -> Tensor:
        """The layer's trainable parameter on the device of `weight` (the model, or a replica of it, may have moved)."""
        return self.extras[layer.name].to(weight.device)

    def recorded_with(self) -> Hashable:
        """The Python numbers that a recorded CUDA graph contains; if they change, another graph is recorded.

        Tensors that change in place do not count.
        """
        return None

    def clipped(self) -> list[nn.Parameter]:
        """Trainable parameters whose gradients are clipped together with the model's."""
        return []

    def penalty(self) -> Tensor | None:
        """A term to add to the loss, 0-dim, or None."""
        return None

    def after_backward(self, layers: Sequence[Layer], moment: Moment) -> None:
        """Called before the optimizer's step, with gradients that are unscaled and equal on all processes."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The method's state other than that of the layers."""
        return {"extras": {name: extra.detach() for name, extra in self.extras.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; the optimizer keeps the same parameters."""
        with torch.no_grad():
            for name, extra in self.extras.items():
                extra.copy_(state["extras"][name])

    def replace_state(self, layer: Layer, key: str, value: Tensor) -> None:
        """Stores a tensor in place, so that a compiled forward finds the same tensor again."""
        held = layer.state.get(key)
        if held is None or held.shape != value.shape or held.device != layer.stored.device:
            layer.state[key] = value.to(layer.stored.device)
        else:
            held.copy_(value, non_blocking=True)

    def replace_states(self, layers: Sequence[Layer], key: str, values: Sequence[Tensor]) -> None:
        """`replace_state` for one value per layer; in one operation if the layers already hold such tensors."""
        held: list[Tensor] = []
        new: list[Tensor] = []
        for layer, value in zip(layers, values, strict=True):
            present = layer.state.get(key)
            if present is value:
                continue
            same = present is not None and present.shape == value.shape and present.device == value.device
            if same and present.stride() == value.stride():  # type: ignore[union-attr]
                held.append(present)  # type: ignore[arg-type]
                new.append(value)
            else:
                # A copy, because the values of several layers may be views of one tensor.
                self.replace_state(layer, key, value.clone())
        if held:
            torch._foreach_copy_(held, new, non_blocking=True)
