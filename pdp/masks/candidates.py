"""A hard mask that trained scores of candidates choose: N:M as in LBC (Zhang et al. 2022).

The kernel that equals this definition is in `pdp.kernels.cpu.candidates`.
"""

from __future__ import annotations

from torch import Tensor


def prune_by_candidates(
    weight: Tensor, keep: Tensor, scores: Tensor, alive: Tensor, candidates: Tensor, along: int
) -> Tensor:
    """W * B with the mask B = `keep`, in the dtype of `weight`; dL/dW = dL/dW~ * B, and a living candidate's score gets
    the sum of dL/dW~ * W over the weights of its group that it contains.

    Groups run along dimension `along`; `scores` and `alive` (bool) are (all other dimensions..., groups, C), and
    `candidates`, (C, M), has a one for each member that a candidate contains. A score that is no finite number makes
    its whole group NaN.
    """
    sums = ((scores * alive) @ candidates).flatten(-2).movedim(-1, along)
    return (weight * (keep + (sums - sums.detach()))).to(weight.dtype)
