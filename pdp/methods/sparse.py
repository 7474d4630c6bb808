"""Sparse from the start: weights are dropped by magnitude and grown where the dense gradient is largest."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.layers import Layer, Member
from pdp.masks.cut import keep_units
from pdp.masks.straight_through import straight_through
from pdp.methods.masked import MaskedMethod


class SparseMethod(MaskedMethod):
    """W * B from a random B; backward computes all weights' gradients, and removes pruned ones' between updates."""

    schedule = "constant"
    allocation = "erk"
    needs_attach = True
    zeroes = True

    def make_mask(self, layer: Layer) -> None:
        """The first mask is random, the same on every process; where a schedule prunes more later, by magnitude."""
        if "keep" in layer.state:
            return super().make_mask(layer)
        # A separate random stream for each layer, so that no layer's mask depends on the size of another.
        place = zlib.crc32(layer.name.encode())
        generator = torch.Generator().manual_seed(1_000_003 * (self.plan.seed + 1) + place)
        chances = torch.rand(layer.weight.shape, generator=generator)
        self.set_mask(layer, keep_units(chances, layer.pruned).to(layer.weight.device))

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return straight_through(weight, layer.state["keep"])

    def slope(self, layer: Layer) -> Tensor:
        return layer.state["keep"].float()  # what the mask lets through after backward

    def mask_gradients(self, layers: Sequence[Layer]) -> None:
        """Sets the gradient of pruned weights to zero."""
        for layer in layers:
            if layer.active and layer.weight.grad is not None:
                layer.weight.grad.mul_(layer.state["keep"])

    def exchange(self, layer: Layer, dropped: int, gradient: Tensor) -> None:
        """Drops the smallest kept weights and grows as many where |gradient| is largest among all that are then pruned.

        Weights that were pruned before start at zero without momentum; one that is dropped and grown at once keeps its
        value.
        """
        keep, weight = layer.state["keep"], layer.weight.detach()
        kept = layer.units - layer.pruned
        dropped = min(dropped, kept - 1)
        if dropped < 1:
            return
        magnitude = torch.where(keep, weight.abs().float(), torch.inf)
        staying = keep & keep_units(magnitude, dropped)
        wanted = torch.where(staying, -torch.inf, gradient.detach().abs().float())
        grown = keep_units(wanted, layer.units - dropped)
        self.set_mask(layer, staying | grown)
