"""Blocks of a weight matrix: where they lie, sums over them, and the soft mask that all weights of a block share.

The matrix of a weight has outputs as rows and, as columns, everything that one output multiplies, in the order of
`weight.flatten(1)`: of a convolution input channel, then kernel row, then kernel column, as `F.unfold` has them. Each
group of a convolution is a matrix of its own, so no block lies in two groups. Blocks begin at the first row and
column; the last ones are ragged where they do not divide the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pdp.masks.soft import NOTHING, SATURATED, exact, offset_of
from pdp.masks.transforms import gradients_with_a_graph, takes_plain, wants_a_graph


@dataclass(frozen=True)
class Grid:
    """The blocks of one weight: `groups` matrices of `rows` x `columns` in blocks of `high` x `wide` weights.

    `turned` is for a weight that is stored as (inputs, outputs).
    """

    shape: tuple[int, ...]  # of the weight
    groups: int
    high: int
    wide: int
    turned: bool = False

    @property
    def rows(self) -> int:
        """The outputs of each group."""
        return self.shape[1 if self.turned else 0] // self.groups

    @property
    def columns(self) -> int:
        """The weights of each output."""
        units = 1
        for size in self.shape:
            units *= size
        return units // (self.rows * self.groups)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many blocks there are: (groups, along rows, along columns)."""
        return self.groups, -(-self.rows // self.high), -(-self.columns // self.wide)

    @property
    def ragged(self) -> bool:
        """Whether some blocks are smaller than the others."""
        return bool(self.rows % self.high or self.columns % self.wide)

    def sizes(self, device: torch.device) -> Tensor:
        """How many weights each block has: (groups, along rows, along columns), int64."""
        _, down, across = self.counts
        heights = torch.full((down,), self.high, device=device)
        widths = torch.full((across,), self.wide, device=device)
        heights[-1], widths[-1] = self.rows - (down - 1) * self.high, self.columns - (across - 1) * self.wide
        return (heights[:, None] * widths).expand(self.counts)

    def sums(self, values: Tensor) -> Tensor:
        """The sum of each block's numbers, in their dtype: `values` are shaped like the weight."""
        matrices = (values.t() if self.turned else values).reshape(self.groups, self.rows, self.columns)
        _, down, across = self.counts
        if self.ragged:
            missing = (0, across * self.wide - self.columns, 0, down * self.high - self.rows)
            matrices = functional.pad(matrices, missing)
        return matrices.reshape(self.groups, down, self.high, across, self.wide).sum((2, 4))

    def spread(self, values: Tensor) -> Tensor:
        """One number per block, repeated over its weights: shaped like the weight, differentiable in `values`."""
        groups, down, across = self.counts
        tiles = values[:, :, None, :, None].expand(groups, down, self.high, across, self.wide)
        matrices = tiles.reshape(groups, down * self.high, across * self.wide)[:, : self.rows, : self.columns]
        if self.turned:
            return matrices.reshape(self.rows, self.columns).t().contiguous()
        return matrices.reshape(self.shape)


def block_sums(grid: Grid, weight: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of `of` (an elementwise function) over each block's weights, in float64: blocks with equal weights get
    equal sums.
    """
    return grid.sums(of(weight.detach().to(torch.float64, memory_format=torch.contiguous_format)))


def soft_prune_blocks(
    weight: Tensor, cut: Tensor, temperature: Tensor | float, grid: Grid, scale: Tensor | float
) -> Tensor:
    """m_b * w in the dtype of `weight`, with m_b = sigmoid((s_b^2 - t^2) / tau) and s_b^2 = scale * sum of the block's
    w^2.

    `cut` is t, one number; `scale` is one number or one per block. t is a constant to autograd, and the derivative for
    a weight w_i of block b is m_b g_i + (2 scale / tau) m_b (1 - m_b) w_i * (sum over the block of g_j w_j), where g is
    the gradient of the result. Saves only the weight and the cut for backward.
    """
    if takes_plain():
        return _plain(weight, cut, temperature, grid, scale)
    return _SoftPruneBlocks.apply(weight, cut, temperature, grid, scale)


def _masks(weight: Tensor, cut: Tensor, temperature: Tensor | float, grid: Grid, scale: Tensor | float) -> Tensor:
    """m_b of each block, differentiable in the weight."""
    precise = exact(weight)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(precise.dtype)
    if isinstance(scale, Tensor):
        scale = scale.to(precise.dtype)
    squares = grid.sums(precise * precise) * scale
    offset = offset_of(cut, temperature, precise.dtype)
    mask = (offset + squares / temperature).clamp(-SATURATED, SATURATED).sigmoid()
    return torch.where(mask > NOTHING, mask, torch.zeros((), dtype=mask.dtype, device=mask.device))


def _plain(weight: Tensor, cut: Tensor, temperature: Tensor | float, grid: Grid, scale: Tensor | float) -> Tensor:
    """The same in plain operations, which support derivatives of any order, `torch.func` and forward mode."""
    return (exact(weight) * grid.spread(_masks(weight, cut, temperature, grid, scale))).to(weight.dtype)


class _SoftPruneBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, cut: Tensor, temperature: Tensor | float, grid: Grid, scale: Tensor | float):
        ctx.temperature, ctx.grid, ctx.scale = temperature, grid, scale
        ctx.save_for_backward(weight, cut)
        return _plain(weight, cut, temperature, grid, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        weight, cut = ctx.saved_tensors
        temperature, grid, scale = ctx.temperature, ctx.grid, ctx.scale
        if wants_a_graph():
            plain = partial(_plain, cut=cut, temperature=temperature, grid=grid, scale=scale)
            return *gradients_with_a_graph(plain, [weight], [gradient]), None, None, None, None  # type: ignore[return-value]
        precise, upstream = exact(weight), gradient.to(exact(weight).dtype)
        mask = _masks(weight, cut, temperature, grid, scale)
        steep = mask * (1 - mask) * (2 * scale / temperature)
        slope = grid.sums(precise * upstream) * steep.to(mask.dtype)
        found = torch.addcmul(upstream * grid.spread(mask), precise, grid.spread(slope))
        return found.to(weight.dtype), None, None, None, None
