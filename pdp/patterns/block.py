"""The block pattern: a block of rows x columns of the weight matrix is kept or pruned as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.layers import Layer, Member, input_axis
from pdp.masks.blocks import Grid, block_sums, soft_prune_blocks
from pdp.masks.cut import cut_at, keep_units
from pdp.patterns import pattern
from pdp.patterns.block_budget import global_budget, nearest, whole_budget, within_reach
from pdp.patterns.options import BlockOptions
from pdp.patterns.pattern import Wanted
from pdp.schedule.allocation import allocate


class Pattern(pattern.Pattern):
    """Saliencies and masks have one entry per block, (groups, along rows, along columns); units are single weights.

    So a share is a share of the weights, and a ragged block at the end of a matrix counts for what it has. A layer
    loses the whole blocks of least saliency whose weights come nearest to its number of pruned units.
    """

    name = "block"
    temperature_mode = "relative"
    options: BlockOptions

    def __init__(self, options: BlockOptions):
        super().__init__(options)
        self._sizes: dict[tuple[Grid, torch.device], Tensor] = {}

    @property
    def kappa(self) -> float:  # type: ignore[override]
        """The mean square of a block of n weights varies as 1 / sqrt(n), so the mask is as much steeper."""
        high, wide = self.options.block
        return pattern.Pattern.kappa / math.sqrt(high * wide)

    def gather(self, model: nn.Module, layers: list[Layer], example_input: Any) -> tuple[list[Layer], dict[str, str]]:
        taken: list[Layer] = []
        dense: dict[str, str] = {}
        for layer in layers:
            reason = self._refuses(layer)
            if reason:
                dense[layer.name] = reason
            else:
                layer.units = layer.stored.numel()
                taken.append(layer)
        return taken, dense

    def _refuses(self, layer: Layer) -> str | None:
        module = layer.sites[0].module
        if isinstance(module, _ConvTransposeNd):
            return "a transposed convolution"
        if isinstance(module, _ConvNd) and module.groups > 1 and layer.stored.shape[1] == 1:
            return "depthwise"
        grid = self.grid(layer)
        if grid.rows < grid.high or grid.columns < grid.wide:
            of = " of each group" if grid.groups > 1 else ""
            return f"its matrix{of}, {grid.rows} x {grid.columns}, is smaller than a block of {grid.high} x {grid.wide}"
        return "a single block" if math.prod(grid.counts) == 1 else None

    def grid(self, layer: Layer) -> Grid:
        """Where the layer's blocks lie."""
        site = layer.sites[0]
        groups = site.module.groups if isinstance(site.module, _ConvNd) else 1
        high, wide = self.options.block
        return Grid(tuple(layer.stored.shape), groups, high, wide, input_axis(site) == 0)

    def amount(self, layer: Layer, units: float) -> int:
        grid = self.grid(layer)
        size = grid.high * grid.wide
        return super().amount(layer, units) if grid.ragged else math.floor(units / size + 0.5) * size

    def removed(self, layer: Layer, keep: Tensor) -> int:
        return int((self._size(layer, keep.device) * ~keep).sum())

    def budget(self, layers: Sequence[Layer], wanted: Wanted) -> list[int]:
        if wanted.allocation == "global":
            if wanted.share is None or not 0 <= wanted.share < 1:
                allocate("global", layers, wanted.share, wanted.saliency)  # says what is wrong
            assert wanted.share is not None
            values = [self._compared(layer, wanted) for layer in layers]
            sizes = [self._size(layer, one.device) for layer, one in zip(layers, values, strict=True)]
            return global_budget(layers, values, sizes, wanted.share)
        reachable = [self._reachable(layer, wanted.saliency(layer)) for layer in layers]
        share, total = wanted.share, None
        if wanted.allocation != "file" and share is not None and 0 <= share < 1:
            total = share * sum(layer.units for layer in layers)
            # Layers of few blocks cannot lose what they should; the others make up for them.
            layers, share = within_reach(layers, reachable, share, math.prod(self.options.block))
        asked = allocate(wanted.allocation, layers, share, wanted.saliency, wanted.path)
        return whole_budget(asked, reachable, total)

    def _compared(self, layer: Layer, wanted: Wanted) -> Tensor:
        """Saliencies that can be compared across layers."""
        values = wanted.saliency(layer).double()
        if self.options.relative_budget and not wanted.comparable:
            values = values / values.mean().clamp(min=1e-30)
        return values.cpu() if layer.sharded else values

    def _reachable(self, layer: Layer, saliency: Tensor) -> Tensor:
        """How many weights the 1, 2, ... least blocks have, as far as the layer may lose them; int64."""
        gone = self._size(layer, saliency.device).reshape(-1)[_order(saliency)].cumsum(0)
        return gone[gone <= layer.units - layer.least]

    def _size(self, layer: Layer, device: torch.device) -> Tensor:
        key = (self.grid(layer), device)
        if key not in self._sizes:
            self._sizes[key] = key[0].sizes(device)
        return self._sizes[key]

    def forget(self) -> None:
        super().forget()
        self._sizes.clear()

    def _scale(self, layer: Layer, device: torch.device) -> Tensor | float:
        """s^2 of a block over the sum of its squares."""
        if self.options.saliency != "rms":
            return 1.0
        grid = self.grid(layer)
        return 1 / self._size(layer, device).double() if grid.ragged else 1 / (grid.high * grid.wide)

    def saliency(self, layer: Layer) -> Tensor:
        weight = layer.weight
        if self.options.saliency == "l1":
            return block_sums(self.grid(layer), weight, torch.abs).float()
        squares = block_sums(self.grid(layer), weight, torch.square)
        return (squares * self._scale(layer, weight.device)).sqrt().float()

    def alive(self, layer: Layer) -> Tensor:
        return block_sums(self.grid(layer), layer.weight != 0, lambda some: some) > 0

    def keep(self, layer: Layer, saliency: Tensor) -> Tensor:
        blocks = self._blocks(layer, saliency)
        if isinstance(blocks, int):
            return keep_units(saliency, blocks)
        rank = torch.empty_like(order := _order(saliency))
        rank[order] = torch.arange(len(order), device=order.device)
        return (rank >= blocks).reshape(saliency.shape)

    def _blocks(self, layer: Layer, saliency: Tensor) -> int | Tensor:
        """How many blocks of least saliency go for the layer's pruned units; a tensor if that depends on which."""
        grid = self.grid(layer)
        if layer.pruned <= 0 or layer.pruned >= layer.units:
            return 0 if layer.pruned <= 0 else math.prod(grid.counts)
        if not grid.ragged:
            size = grid.high * grid.wide
            return min(math.floor(layer.pruned / size + 0.5), (layer.units - layer.least) // size)
        gone = self._size(layer, saliency.device).reshape(-1)[_order(saliency)].cumsum(0)
        allowed = (gone <= layer.units - layer.least).sum()
        return torch.minimum(nearest(gone, layer.pruned), allowed)

    def cuts(self, layers: Sequence[Layer], held: Sequence[Tensor | None] = ()) -> list[Tensor]:
        return [self._cut(layer, self.saliency(layer)).to(layer.stored.device) for layer in layers]

    def _cut(self, layer: Layer, saliency: Tensor) -> Tensor:
        blocks = self._blocks(layer, saliency)
        if isinstance(blocks, int):
            return cut_at(saliency, blocks)
        ordered = saliency.reshape(-1).sort().values
        below, above = ordered[(blocks - 1).clamp(min=0)], ordered[blocks.clamp(max=len(ordered) - 1)]
        return torch.where(blocks > 0, below + (above - below) * 0.5, -math.inf)

    def spread(self, values: Tensor, layer: Layer, member: Member, weight: Tensor) -> Tensor:
        spread = self.grid(layer).spread(values)
        # In the weight's own memory order, so that the masked weight keeps that order.
        if weight.dim() == 4 and not weight.is_contiguous():
            return spread.contiguous(memory_format=torch.channels_last)
        return spread

    def begin_forward(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float) -> None:
        super().begin_forward([], temperatures)  # no kernel masks blocks of several layers together

    def finish(self, model: nn.Module, layer: Layer, keep: Tensor) -> None:
        layer.pruned = self.removed(layer, keep)

    def soft_weight(self, layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float) -> Tensor:
        scale = self._scale(layer, weight.device)
        return soft_prune_blocks(weight, layer.state["cut"], temperature, self.grid(layer), scale)


def _order(saliency: Tensor) -> Tensor:
    """The blocks from the least saliency up, the lowest index first among equal ones."""
    return saliency.reshape(-1).sort(stable=True).indices
