"""Several weights masked at once on the CPU: one call of a kernel for all, and one node of autograd for each bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pdp.kernels.cpu.layout import alike, readable
from pdp.masks.kept import keep, kept
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph


class Masks(Protocol):
    """The masks of several weights, one each."""

    cuts: list[Tensor]  # what backward reads besides the weights, one for each; empty if nothing

    def chosen(self, places: Sequence[int]) -> Masks:
        """The masks of the weights at these places."""

    def write_effective(self, weights: Sequence[Tensor], effective: Sequence[Tensor]) -> None:
        """Writes m(w) * w of each weight."""

    def write_slopes(self, weights: Sequence[Tensor], upstream: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
        """Writes the gradient of each weight, given that of its effective weight."""

    def plain(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """The effective weights in plain operations."""


def effective_weights(weights: Sequence[Tensor], masks: Masks) -> list[Tensor]:
    """m(w) * w of each weight, in its layout."""
    effective = [torch.empty_like(weight) for weight in weights]
    masks.write_effective(weights, effective)
    return effective


def joined(weights: Sequence[Tensor], masks: Masks, effective: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What `effective_weights` has computed, differentiable in the weights in a single node of autograd."""
    return _HostJoint.apply(masks, effective, *weights)


class _HostJoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, masks: Masks, effective: Sequence[Tensor], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.masks, ctx.many = masks, len(weights)
        ctx.strides = [weight.stride() for weight in weights]
        keep(ctx, *weights, *masks.cuts)
        ctx.set_materialize_grads(False)
        return tuple(effective)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [place for place, gradient in enumerate(gradients) if gradient is not None]
        tensors = kept(ctx, [*given, *(ctx.many + place for place in given if ctx.masks.cuts)])
        if wants_a_graph():
            return None, None, *gradients_with_a_graph(ctx.masks.plain, ctx.kept[: ctx.many], gradients)
        everything = len(given) == ctx.many
        masks, strides, arrived = ctx.masks, ctx.strides, gradients
        if not everything:
            masks, strides = masks.chosen(given), [strides[place] for place in given]
            arrived = tuple(gradients[place] for place in given)
        weights = [readable(weight, stride) for weight, stride in zip(tensors, strides)]  # noqa: B905, cuts follow
        slopes = [torch.empty_like(weight) for weight in weights]
        upstream = [alike(one, weight, stride) for one, weight, stride in zip(arrived, weights, strides, strict=True)]  # type: ignore[arg-type]
        masks.write_slopes(weights, upstream, slopes)
        if everything:
            return None, None, *slopes
        found = dict(zip(given, slopes, strict=True))
        return None, None, *(found.get(place) for place in range(ctx.many))
