"""What a node of autograd keeps for backward beside what autograd itself would save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def keep(ctx: Any, *tensors: Tensor) -> None:
    """Keeps inputs of a node of its own, as activation checkpointing counts what is saved in a region.

    A node that masks several tensors may be made in one region in forward, and one for a single tensor of another in
    its recomputation.
    """
    ctx.kept = tensors
    ctx.versions = _versions(tensors)


def kept(ctx: Any) -> tuple[Tensor, ...]:
    """What was kept; raises `RuntimeError` where some of it has been changed in place since."""
    if _versions(ctx.kept) != ctx.versions:
        raise RuntimeError(
            "a weight or a cut that a mask was made of has been modified by an inplace operation since the forward: "
            "call backward before the optimizer's step"
        )
    return ctx.kept


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [0 if one.is_inference() else one._version for one in tensors]
