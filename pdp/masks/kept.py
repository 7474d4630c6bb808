"""Saves tensors for the backward of our own autograd functions, outside of autograd's `save_for_backward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def keep(ctx: Any, *tensors: Tensor) -> None:
    """Keeps input tensors of an autograd function for its backward, without `save_for_backward`.

    Activation checkpointing counts the tensors saved by `save_for_backward` in a region and compares forward with
    recomputation. A function that masks several tensors at once may run in one region in the forward pass, while the
    recomputation of another region runs one for a single tensor; the counts would not match.
    """
    ctx.kept = tensors
    ctx.versions = _versions(tensors)


def kept(ctx: Any, places: Sequence[int] | None = None) -> tuple[Tensor, ...]:
    """The tensors that `keep` saved, or those at `places`.

    Raises `RuntimeError` if one of them has been changed in place since.
    """
    chosen = range(len(ctx.kept)) if places is None else places
    tensors = ctx.kept if len(chosen) == len(ctx.kept) else tuple(ctx.kept[place] for place in chosen)
    before = ctx.versions if tensors is ctx.kept else [ctx.versions[place] for place in chosen]
    if _versions(tensors) != before:
        raise RuntimeError(
            "a weight or a cut that a mask was made of has been modified by an inplace operation since the forward: "
            "call backward before the optimizer's step"
        )
    return tensors


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [0 if one.is_inference() else one._version for one in tensors]
