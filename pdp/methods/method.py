"""What every pruning method answers; the pruner asks, the training loop never does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods.options import MethodOptions
from pdp.patterns.pattern import Pattern


class Method:
    """From a layer's stored weight, its share and the method's state to the weight the layer computes with.

    State that a layer carries from step to step lives in `layer.state` as tensors, under names of the method's own.
    """

    schedule: ClassVar[str] = "linear"  # the schedule and allocation of its own paper
    allocation: ClassVar[str] = "global"
    prunes: ClassVar[bool] = True
    needs_attach: ClassVar[bool] = False  # whether the optimizer must know its extras before the first step

    def __init__(self, options: MethodOptions, pattern: Pattern):
        self.options = options
        self.pattern = pattern

    def begin(self, layers: Sequence[Layer]) -> None:
        """The layers are known, training has not begun: make trainable extras here."""

    def update(self, layers: Sequence[Layer], step: int | None) -> None:
        """New cuts or masks for the shares that hold now; `step` counts optimizer steps, None at an epoch's start."""
        raise NotImplementedError

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        """What the layer computes with in training in place of `weight`, one of its members; differentiable."""
        raise NotImplementedError

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

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of trainable extras."""
        return []

    def penalty(self) -> Tensor | None:
        """A term added to the loss, or None."""
        return None

    def after_backward(self, layers: Sequence[Layer], step: int) -> None:
        """Gradients are there, the optimizer has not stepped."""

    def state_dict(self) -> dict[str, Any]:
        """State beyond the layers' own."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""

    def replace_state(self, layer: Layer, key: str, value: Tensor) -> None:
        """Stores a tensor in place, so that a compiled forward sees the same tensor again."""
        held = layer.state.get(key)
        if held is None or held.shape != value.shape:
            layer.state[key] = value.to(layer.weight.device)
        else:
            held.copy_(value, non_blocking=True)
