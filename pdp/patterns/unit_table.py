"""Holds the units of several layers in one vector, so that a step handles all layers in a few operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.kernels import cpu as host_kernels
from pdp.kernels.gpu import usable
from pdp.layers import Layer
from pdp.masks.sums import row_sums
from pdp.masks.units import steepness
from pdp.sharded import is_sharded


class UnitTable:
    """Concatenates the units of several layers on one device, and computes their saliencies, cuts and masks together.

    `scales` are the factors of each layer's sums of squares in s^2. After construction nothing waits for the device.
    """

    @torch.inference_mode(False)
    def __init__(self, layers: Sequence[Layer], scales: Sequence[float]):
        self.layers = list(layers)
        self.device = self.layers[0].stored.device
        self.sizes = [layer.units for layer in self.layers]
        self.members = [member for layer in self.layers for member in layer.members if member.weighs]
        sizes = torch.tensor(self.sizes)
        starts = sizes.cumsum(0) - sizes
        owner = torch.arange(len(self.layers)).repeat_interleave(sizes)
        within = torch.arange(int(sizes.sum())) - starts[owner]
        count = int(sizes.sum())
        rows = [
            torch.where(member.units.cpu() < layer.units, member.units.cpu() + start, count)
            for layer, start in zip(self.layers, starts, strict=True)
            for member in layer.members
            if member.weighs and member.units is not None
        ]
        self.host_rows = torch.cat(rows)
        self.whole = all(member.whole for member in self.members)
        self.owner, self.rows = owner.to(self.device), self.host_rows.to(self.device)
        self.place = (owner * max(self.sizes) + within).to(self.device)
        self.scales = torch.tensor(scales, device=self.device)
        self.scale = self.scales[self.owner]
        self.exact_scale = torch.tensor(scales, dtype=torch.float64, device=self.device)[self.owner]
        # Layers with fewer units than the largest one are padded with infinity, which ranks behind all units.
        self.padded = torch.full((len(self.layers), max(self.sizes)), math.inf, device=self.device)
        self.pruned: list[int] = []
        self.ranks = self.place
        self.ends: Tensor | None = None
        self._device_squares: Any = None

    def squares(self) -> Tensor:
        """s^2 of all units, (units of all layers,), float32: each layer's scale times the sums of squares.

        Computed in float64 until the end, so that units with equal weights have equal values.
        """
        if any(is_sharded(member.stored) for member in self.members):  # one whole tensor at a time
            return self._joined([row_sums(one.rows(one.tensor.detach()), Tensor.square) for one in self.members])
        tensors = [member.rows(member.tensor.detach()) for member in self.members]
        if self.whole and all(usable(one) and one.dtype == tensors[0].dtype for one in tensors):
            from pdp.kernels.gpu.units import UnitSquares

            if self._device_squares is None:
                self._device_squares = UnitSquares(tensors, self.host_rows, self.exact_scale)
            return self._device_squares.find(tensors)
        if host_kernels.usable(*tensors) and host_kernels.found_units() is not None:
            return self._joined([host_kernels.found_units().row_squares(tensors)])
        return self._joined([row_sums(one, Tensor.square) for one in tensors])

    def _joined(self, sums: Sequence[Tensor]) -> Tensor:
        # Slices of no unit have the place behind all units.
        joint = torch.zeros(len(self.owner) + 1, dtype=torch.float64, device=self.device)
        return (joint.index_add_(0, self.rows, torch.cat(list(sums)))[:-1] * self.exact_scale).float()

    def cuts(self, squares: Tensor) -> Tensor:
        """The cut t of each layer for its pruned units, (layers,); as `pdp.masks.cut.cut_at` of the saliencies s."""
        self._rank()
        self.padded.view(-1).index_copy_(0, self.place, squares)
        below, above = self.padded.sort(dim=1).values.gather(1, self.ranks).sqrt().unbind(1)
        middle = torch.add(below, above - below, alpha=0.5)
        return middle if self.ends is None else middle + self.ends

    def _rank(self) -> None:
        """Copies the ranks of both neighbours of each cut to the device, if a share has changed."""
        pruned = [layer.pruned for layer in self.layers]
        if pruned == self.pruned:
            return
        self.pruned = pruned
        pairs = list(zip(pruned, self.sizes, strict=True))
        below = [min(max(count - 1, 0), units - 1) for count, units in pairs]
        above = [
            one if count <= 0 or count >= units else one + 1 for one, (count, units) in zip(below, pairs, strict=True)
        ]
        self.ranks = self._sent(torch.tensor([below, above]).T.contiguous())
        ends = [-math.inf if count <= 0 else math.inf if count >= units else 0.0 for count, units in pairs]
        self.ends = self._sent(torch.tensor(ends)) if any(ends) else None

    def _sent(self, values: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def masks(self, squares: Tensor, cuts: Tensor, temperature: Tensor | float) -> Tensor:
        """The masks m of all units, (units of all layers,), for one cut and temperature per layer (or one for all)."""
        signed = cuts * cuts.abs()
        if isinstance(temperature, Tensor):
            signed, temperature = torch.stack((signed, temperature))[:, self.owner].unbind()
            return torch.sigmoid((squares - signed) / temperature)
        return torch.sigmoid((squares - signed[self.owner]) / temperature)

    def steepness(self, masks: Tensor, temperature: Tensor | float) -> Tensor:
        """`pdp.masks.units.steepness` of all units' masks."""
        if isinstance(temperature, Tensor):
            return steepness(masks, (self.scales / temperature * 2)[self.owner])
        return steepness(masks, self.scale * (2 / temperature))

    def split(self, joint: Tensor) -> tuple[Tensor, ...]:
        """Splits a vector over all units into one part per layer."""
        return joint.split(self.sizes)
