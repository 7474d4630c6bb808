"""PDP's effective weights of several layers on a GPU, in one launch and one autograd node; `masks` has those of one
layer.

For a small layer, the host's cost of one autograd node and one launch in each direction exceeds the GPU's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.gpu import joining
from pdp.kernels.gpu.cuts import TYPES, upload
from pdp.kernels.gpu.launching import launch
from pdp.kernels.gpu.masks import alike, spread_cuts
from pdp.masks.kept import keep, kept
from pdp.masks.soft import plain_prune
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph

SLOTS = 16  # weights in one launch, as many as the kernels have arguments for
_BLOCK = 1024
_NEVER = 2**40  # the first program of an empty slot, which no launch reaches
NOWHERE = -(2**40)  # a null address with 64 bits like all others: for 0 Triton would compile a 32-bit variant


@dataclass(frozen=True)
class Part:
    """A weight that is dense in memory, its cuts in memory order, and its own temperature where it has one.

    `inner` is the distance in memory between members of a group; `cuts` is a single number where there are no groups.
    """

    weight: Tensor
    cuts: Tensor
    temperature: Tensor | None
    inner: int

    @property
    def place(self) -> tuple[int, int, int, int]:
        """The addresses of the weight, its cuts and its temperature (0 if it has none), and `inner`."""
        tau = 0 if self.temperature is None else self.temperature.data_ptr()
        return self.weight.data_ptr(), self.cuts.data_ptr(), tau, self.inner


def joinable(part: Part) -> bool:
    """Whether the kernels accept it: a weight aligned to 16 bytes, float32 cuts and temperature on the same device."""
    single = [one for one in (part.cuts, part.temperature) if one is not None]
    if any(one.dtype != torch.float32 or one.device != part.weight.device for one in single):
        return False
    return part.weight.data_ptr() % 16 == 0 and part.weight.numel() > 0


class Joint:
    """Masks at most `SLOTS` weights of one dtype, with groups of `members` weights, step after step.

    `temperature` applies to all parts that have none of their own. The table of addresses is rewritten only when
    something has moved in memory, so that a captured CUDA graph reads one that stays valid.
    """

    def __init__(self, parts: Sequence[Part], members: int):
        first = parts[0].weight
        self.members, self.device = members, first.device
        self.kind = TYPES[first.dtype]
        self.flat = all(part.inner == 1 for part in parts)
        self.held = parts[0].temperature is not None
        sizes = np.array([part.weight.numel() for part in parts])
        self.even = not (sizes % 8).any()
        programs = -(-sizes // _BLOCK)
        self.programs = int(programs.sum())
        table = np.full((6, SLOTS), _NEVER, np.int64)
        table[1:] = 0
        table[0, : len(parts)] = np.cumsum(programs) - programs
        table[1:4, : len(parts)] = np.array([part.place[:3] for part in parts]).T
        table[4, : len(parts)] = sizes
        table[5, : len(parts)] = [part.inner for part in parts]
        self.table = upload(table, self.device)

    def effective(self, parts: Sequence[Part], temperature: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """m(w) * w of each part, rounded once to `dtype`; weights, cuts and temperatures must not change before
        backward.
        """
        weights = [part.weight for part in parts]
        others = [one for part in parts for one in (part.cuts, part.temperature) if one is not None]
        inner = [part.inner for part in parts]
        return _JointPrune.apply(self, temperature, dtype, inner, others, *weights)

    def launch(self, kernel: Any, addresses: Sequence[Sequence[int]], temperature: float, dtype: torch.dtype) -> None:
        """Launches a kernel over all weights; `addresses` are what it reads or writes besides, for each slot."""
        numbers = [one for own in addresses for one in (*own, *[own[0]] * (SLOTS - len(own)))]
        how = {"TYPE": self.kind, "OUT": TYPES[dtype], "MEMBERS": self.members, "FLAT": self.flat}
        how |= {"HELD": self.held, "EVEN": self.even, "SLOTS": SLOTS, "BLOCK": _BLOCK}
        launch(kernel, self.programs, self.table, *numbers, temperature, known=kernel, **how)


class _JointPrune(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, joint: Joint, temperature: float, dtype: torch.dtype, inner: list, others: list, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.joint, ctx.temperature, ctx.dtype, ctx.count = joint, temperature, dtype, len(weights)
        ctx.inner = inner
        keep(ctx, *weights, *others)
        ctx.set_materialize_grads(False)
        effective = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        places = [one.data_ptr() for one in effective]
        joint.launch(joining.write_effective_of_many, [places], temperature, dtype)
        return tuple(effective)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None):
        weights, others = kept(ctx)[: ctx.count], kept(ctx)[ctx.count :]
        if wants_a_graph():
            plain = partial(_plain, ctx.joint, ctx.temperature, ctx.inner, others)
            return None, None, None, None, None, *gradients_with_a_graph(plain, weights, gradients)
        given = [_as_lies(*pair) for pair in zip(gradients, weights, strict=True)]
        slopes = [None if one is None else torch.empty_like(weight) for one, weight in zip(given, weights, strict=True)]
        places = [[NOWHERE if one is None else one.data_ptr() for one in ones] for ones in (given, slopes)]
        if any(one is not None for one in given):
            ctx.joint.launch(joining.write_slopes_of_many, places, ctx.temperature, ctx.dtype)
        return None, None, None, None, None, *slopes


def _plain(joint: Joint, temperature: float, inner: list, others: Sequence[Tensor], *weights: Tensor):
    """The same in plain operations, which can be differentiated again."""
    each = 2 if joint.held else 1
    taus: Sequence[Tensor | float] = others[1::2] if joint.held else [temperature] * len(weights)
    own = zip(weights, others[::each], taus, inner, strict=True)
    return tuple(plain_prune(one, spread_cuts(cuts, one, joint.members, by), tau) for one, cuts, tau, by in own)


def _as_lies(gradient: Tensor | None, weight: Tensor) -> Tensor | None:
    """The gradient in the weight's memory layout, at an address that is a multiple of 16 bytes."""
    if gradient is None or (alike(gradient, weight) and gradient.data_ptr() % 16 == 0):
        return gradient
    return torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
