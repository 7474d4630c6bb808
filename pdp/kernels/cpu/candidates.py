"""The mask of `pdp.masks.candidates` on the CPU: one kernel for the weight and one for both gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pdp.kernels.cpu import choosing
from pdp.kernels.cpu.layout import alike, readable
from pdp.kernels.cpu.team import run
from pdp.masks.candidates import prune_by_candidates
from pdp.masks.kept import keep as hold
from pdp.masks.kept import kept
from pdp.masks.transforms import gradients_with_a_graph, wants_a_graph

_members_held: tuple[Tensor, Tensor] | None = None  # of the candidates that were asked for last


def host_prune_by_candidates(
    weight: Tensor, keep: Tensor, scores: Tensor, alive: Tensor, candidates: Tensor, along: int
) -> Tensor:
    """`prune_by_candidates` of a weight that the kernels accept; in plain operations unless its inputs are dimension 1
    and the scores are finite.
    """
    in_order = along == 1 and scores.is_contiguous() and alive.is_contiguous()
    if not in_order or not candidates.is_cpu or not _readable(scores, keep, alive):
        return prune_by_candidates(weight, keep, scores, alive, candidates, along)
    return _HostCandidates.apply(weight, scores, _ordered(keep, weight), alive, candidates)


def _same_order(values: Tensor, weight: Tensor) -> bool:
    """Whether a tensor has the weight's shape and memory order."""
    if values.shape != weight.shape:
        return False
    pairs = zip(values.shape, values.stride(), weight.stride(), strict=True)
    return all(first == second for size, first, second in pairs if size > 1)


def _readable(scores: Tensor, *masks: Tensor) -> bool:
    """Whether the scores are finite float32 numbers and the masks bool, all on the CPU."""
    if scores.dtype != torch.float32 or not all(one.is_cpu for one in (scores, *masks)):
        return False
    return all(one.dtype == torch.bool for one in masks) and _all_finite(scores)


def _all_finite(values: Tensor) -> bool:
    """Whether none of the float32 numbers, which fill their memory without gaps, is infinite or NaN."""
    found = torch.zeros(1, dtype=torch.int32, device="cpu")
    run(choosing.find_unfinished, values.numel(), (values.data_ptr(), values.numel(), found.data_ptr()))
    return not found.item()


def _ordered(keep: Tensor, weight: Tensor) -> Tensor:
    return keep if _same_order(keep, weight) else torch.empty_like(weight, dtype=torch.bool).copy_(keep)


class _HostCandidates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, keep: Tensor, alive: Tensor, candidates: Tensor) -> Tensor:
        hold(ctx, weight, keep, alive)
        ctx.scores, ctx.candidates, ctx.stride = scores, candidates, weight.stride()
        return _kept(weight, keep)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, keep, alive = kept(ctx)
        if wants_a_graph():

            def plain(weight: Tensor, scores: Tensor) -> Tensor:
                return prune_by_candidates(weight, keep, scores, alive, ctx.candidates, 1)

            return *gradients_with_a_graph(plain, [weight, ctx.scores], [gradient]), None, None, None
        weight = readable(weight, ctx.stride)
        gradient, slope, scores_slope = (
            alike(gradient, weight, ctx.stride),
            torch.empty_like(weight),
            torch.empty_like(ctx.scores),
        )
        rows, inputs, apart = weight.shape[0], weight.shape[1], weight.stride(1)
        inner = math.prod(weight.shape[2:])
        tensors = (weight, gradient, keep, alive, slope, scores_slope, _members(ctx.candidates))
        places = [one.data_ptr() for one in tensors]
        step = 1 if apart == inner else inputs  # between two places of a window
        sizes = (rows, inputs, inner, apart, step, *ctx.candidates.shape)
        run(choosing.write_candidate_slopes, weight.numel(), (*places, *sizes))
        return slope, scores_slope, None, None, None


def _kept(weight: Tensor, keep: Tensor) -> Tensor:
    effective = torch.empty_like(weight)
    places = [one.data_ptr() for one in (weight, keep, effective)]
    run(choosing.write_kept, weight.numel(), (*places, weight.numel()))
    return effective


def _members(candidates: Tensor) -> Tensor:
    """Where each candidate's members begin and end in this very list, then all members, int32."""
    global _members_held
    if _members_held is None or _members_held[0] is not candidates:
        counts = candidates.count_nonzero(dim=1).cumsum(0)
        begins = torch.cat([counts.new_zeros(1), counts]) + len(candidates) + 1
        _members_held = (candidates, torch.cat([begins, candidates.nonzero()[:, 1]]).to(torch.int32))
    return _members_held[1]
