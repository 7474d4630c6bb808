"""What every pruning method answers; the pruner asks, the training loop never does."""

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
    """What a method may know of the run it is in."""

    target: float | None  # the share of units to prune at the end; None where the run has no target
    allocation: str
    epochs: int
    steps_per_epoch: int | None
    seed: int
    budget: Callable[[float | None, str | None], list[int]]  # of a share, from the weights as they are; pruned units

    def steps_of(self, time: str, key: str) -> int:
        """A time of the options in optimizer steps, at least one; `key` names it in a refusal."""
        return max(1, Time.parse(time, key).steps(self.epochs, self.steps_per_epoch))

    def epochs_of(self, time: str, key: str) -> int:
        """A time of the options in whole epochs, at least one."""
        return max(1, Time.parse(time, key).epochs(self.epochs))


@dataclass(frozen=True)
class Moment:
    """A moment of training at which the pruner asks."""

    epoch: int  # counted from 0
    step: int  # optimizer steps taken so far
    fraction: float  # of the target, by the schedule
    epoch_start: bool = False  # before the epoch's first step
    final: bool = False  # training is over, the masks become hard


class Method(ABC):
    """From a layer's stored weight, its share and the method's state to the weight the layer computes with.

    State that a layer carries from step to step lives in `layer.state` as tensors, under names of the method's own.
    """

    schedule: ClassVar[str] = "linear"  # the schedule and allocation of its own paper
    unit: ClassVar[str] = "epoch"  # and the schedule's unit, where the steps of an epoch are known
    ramp: ClassVar[str | None] = None  # and its ramp, a time; None: the library's default
    allocation: ClassVar[str] = "global"
    prunes: ClassVar[bool] = True
    needs_attach: ClassVar[bool] = False  # whether the optimizer must know its extras before the first step
    calibrates: ClassVar[bool] = False  # whether its mask is made at one stroke, from calibration samples
    recordable: ClassVar[bool] = True  # whether a step's forward and backward can be replayed (pdp.training.graphs)
    comparable: ClassVar[bool] = False  # whether its saliency compares across layers without being made relative

    def __init__(self, options: MethodOptions, pattern: Pattern):
        self.options = options
        self.pattern = pattern
        self.optimizer: torch.optim.Optimizer | None = None  # set when the pruner is attached
        self.extras: dict[str, nn.Parameter] = {}  # trainable extras by layer name

    @property
    def needs_target(self) -> bool:
        """Whether a target share must be given."""
        return True

    @property
    def exact(self) -> bool:
        """Whether the schedule sets the shares that hold now, rather than what is learned."""
        return True

    @property
    def takes_budget(self) -> bool:
        """Whether each layer's share can be given (allocation=file), rather than be the method's own to find."""
        return True

    @property
    def locked(self) -> bool:
        """Whether the zeros that the model has are its mask, so that no share is shared out."""
        return False

    def refuses(self, layer: Layer) -> str | None:
        """Why the method leaves a layer dense, where it does."""
        return None

    def begin(self, layers: Sequence[Layer], plan: Plan) -> None:
        """The layers are known, training has not begun: make trainable extras here."""
        self.plan = plan

    def share_out(self, layers: Sequence[Layer], moment: Moment) -> None:
        """Sets every layer's pruned units, and whether it is active, for the fraction that holds now."""
        for layer in layers:
            layer.pruned = int(moment.fraction * layer.final + 0.5)
            layer.active = layer.pruned > 0

    def set_shares(self, layers: Sequence[Layer], share: float, allocation: str | None = None) -> None:
        """Prunes `share` of all units, shared out anew from the weights as they are; None is the run's allocation."""
        for layer, count in zip(layers, self.plan.budget(share, allocation), strict=True):
            layer.pruned, layer.active = count, count > 0

    @abstractmethod
    def update(self, layers: Sequence[Layer], moment: Moment) -> None:
        """New cuts or masks for the shares that hold now: at an epoch's start, after each optimizer step, at the end.

        Inactive layers are among `layers`.
        """

    def settle(self, layers: Sequence[Layer]) -> None:
        """The model is about to be measured hard: a method whose shares are learned counts them into `pruned`."""
        return None

    def begin_forward(self, layers: Sequence[Layer]) -> None:
        """The whole model's forward begins: what several places of it need can be made once, at the first of them.

        Places that compute outside of one, as in the recomputation of a checkpoint, are not announced.
        """
        return None

    def end_forward(self) -> None:
        """The forward that began last has ended, or raised."""
        return None

    @abstractmethod
    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        """What the layer computes with in training in place of `weight`, one of its members; differentiable."""

    def slope(self, layer: Layer) -> Tensor:
        """d(effective) / d(stored) of each weight as it is now: what of its gradient reaches a weight."""
        weight = layer.weight.detach().clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.effective_weight(layer, weight).sum(), weight, allow_unused=True)
        return torch.zeros_like(weight) if slope is None else slope

    def saliency(self, layer: Layer) -> Tensor:
        """One number per unit, from the stored weight; what is smallest is pruned."""
        return self.pattern.saliency(layer)

    def keep(self, layer: Layer) -> Tensor:
        """The hard mask of a layer over its units, bool: exactly `layer.pruned` units go."""
        return self.pattern.keep(layer, self.saliency(layer))

    def hard_weight(self, layer: Layer, weight: Tensor, keep: Tensor, member: Member | None = None) -> Tensor:
        """What ships in place of `weight`, one of the layer's members; exact zeros where `keep` is false."""
        keep = self.pattern.spread(keep, layer, member or layer.members[0], weight)
        return torch.where(keep, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def temperature_of(self, layer: Layer) -> Tensor | float | None:
        """The temperature of the layer's soft mask as it is now; None where there is none."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of trainable extras; a rate or decay that a group does not name is the recipe's."""
        return []

    def extra(self, layer: Layer, weight: Tensor) -> Tensor:
        """The layer's trainable extra on the device of `weight`: the model, or a replica of it, may have moved."""
        return self.extras[layer.name].to(weight.device)

    def recorded_with(self) -> Hashable:
        """Numbers of Python that a recorded forward holds as they are now; another recording is made where they move.

        Tensors that change in place are none of them.
        """
        return None

    def clipped(self) -> list[nn.Parameter]:
        """Trainable extras whose gradients a recipe's clipping counts and scales with the model's own."""
        return []

    def penalty(self) -> Tensor | None:
        """A term added to the loss, or None."""
        return None

    def after_backward(self, layers: Sequence[Layer], moment: Moment) -> None:
        """Gradients are there, unscaled and equal on all processes; the optimizer has not stepped."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """State beyond the layers' own."""
        return {"extras": {name: extra.detach() for name, extra in self.extras.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; the optimizer goes on with the same parameters."""
        with torch.no_grad():
            for name, extra in self.extras.items():
                extra.copy_(state["extras"][name])

    def replace_state(self, layer: Layer, key: str, value: Tensor) -> None:
        """Stores a tensor in place, so that a compiled forward sees the same tensor again."""
        held = layer.state.get(key)
        if held is None or held.shape != value.shape or held.device != layer.stored.device:
            layer.state[key] = value.to(layer.stored.device)
        else:
            held.copy_(value, non_blocking=True)

    def replace_states(self, layers: Sequence[Layer], key: str, values: Sequence[Tensor]) -> None:
        """`replace_state` for one value a layer, in one operation where the layers hold tensors alike already."""
        held: list[Tensor] = []
        new: list[Tensor] = []
        for layer, value in zip(layers, values, strict=True):
            present = layer.state.get(key)
            if present is not None and present.shape == value.shape and present.device == value.device:
                held.append(present)
                new.append(value)
            else:
                # What layers hold is their own: values of many layers may lie in one tensor.
                self.replace_state(layer, key, value.clone())
        if held:
            torch._foreach_copy_(held, new, non_blocking=True)
