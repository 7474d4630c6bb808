"""Methods whose sparsity is learned: a unit is pruned where its margin is zero or less."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.layers import Layer
from pdp.masks.cut import count_global, count_pruned, keep_units
from pdp.methods import method


class LearnedMethod(method.Method):
    """Shares result from training; a controller, or a correction at the end, can bring the total to the target.

    At the start of each epoch the controller shifts the margins of all layers by one common number, so that the total
    share follows the schedule, while training determines the layers' margins relative to each other. Without a
    controller, a target is met by one such shift at the end; without a target, the sparsity is the one that results.
    """

    schedule = "cubic"
    needs_attach = True

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.ended = False

    @property
    def exact(self) -> bool:
        return False

    @property
    def takes_budget(self) -> bool:
        return False

    @property
    def controlled(self) -> bool:
        """Whether the controller is on, so that the total share follows the schedule."""
        return getattr(self.options, "controller", "none") != "none"

    @property
    def needs_target(self) -> bool:
        return self.controlled

    @abstractmethod
    def margin(self, layer: Layer) -> Tensor:
        """How far each unit is from being pruned, comparable across layers; (units of the layer), finite or -inf."""

    @abstractmethod
    def shift(self, layer: Layer, by: float | Tensor) -> None:
        """Lowers all margins of the layer by `by`."""

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        for layer in layers:
            layer.active = True

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        self.hold_floors(layers)
        steered = self.controlled and moment.epoch_start and moment.fraction
        if self.plan.target is not None and (steered or moment.final):
            self.steer(layers, moment.fraction * self.plan.target)
            self.ended = moment.final

    @torch.no_grad()
    def hold_floors(self, layers: Sequence[Layer]) -> None:
        """Shifts the margins of layers that would prune too much, so that the units they must keep stay above zero.

        A layer without any weight left would have no gradient to recover by. Forces no device synchronization.
        """
        for layer in layers:
            if layer.least > 1:
                last = self.margin(layer).reshape(-1).topk(layer.least).values[-1]
                # More than the rounding error of float32 for a threshold of this size.
                room = 1e-5 * (1 + last.abs())
                self.shift(layer, (last - room).clamp(max=0.0))

    def steer(self, layers: Sequence[Layer], share: float) -> None:
        """Shifts all margins so that `share` of all units is pruned; exact except for rounding in the shift."""
        margins = [self.margin(layer).float() for layer in layers]
        total = count_pruned(share, sum(layer.units for layer in layers))
        counts = count_global(margins, total, [layer.least for layer in layers])
        highest, lowest = -torch.inf, torch.inf
        own: list[tuple[float, float]] = []  # for each layer: its largest pruned margin and its smallest kept one
        for layer, margin, count in zip(layers, margins, counts, strict=True):
            layer.pruned = count
            keep = keep_units(margin, count)
            finite = margin[keep & margin.isfinite()]
            pruned_most = float(margin[~keep].max()) if count else -torch.inf
            own.append((pruned_most, float(finite.min()) if finite.numel() else torch.inf))
            highest, lowest = max(highest, own[-1][0]), min(lowest, own[-1][1])
        if highest > -torch.inf:
            # A unit that is kept only so that its layer is not empty may have a margin below the cut.
            by = highest + (lowest - highest) * 0.5 if lowest > highest else highest
        else:
            # Only exact zeros are pruned, wherever the cut is; it only needs to be below all other margins.
            by = lowest - 1 if lowest <= 0 else 0.0
        for layer, (below, above) in zip(layers, own, strict=True):
            # A layer that must keep more units than the common cut leaves it gets its own cut, just below the kept
            # ones.
            if layer.least > 1 and above <= by:
                self.shift(layer, below + (above - below) * 0.5 if below > -torch.inf else above - 1)
            else:
                self.shift(layer, by)

    def settle(self, layers: Sequence[Layer]) -> None:
        if not self.ended:
            for layer in layers:
                layer.pruned = int((self.margin(layer) <= 0).sum())

    def saliency(self, layer: Layer) -> Tensor:
        return self.margin(layer) if layer.name in self.extras else self.pattern.saliency(layer)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ended": self.ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.ended = state["ended"]
