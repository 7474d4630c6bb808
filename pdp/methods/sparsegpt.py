"""SparseGPT (Frantar and Alistarh 2023): the weights to the right compensate for what a pruned weight contributed."""

from __future__ import annotations

import torch
from torch import Tensor

from pdp.errors import Stopped
from pdp.layers import Layer
from pdp.masks.cut import keep_units
from pdp.methods.calibrated import CalibratedMethod, Statistics, from_rows, to_rows
from pdp.methods.options import SparsegptOptions

_TRIES = 8  # attempts, each with ten times the damping


class Hessians(Statistics):
    """H = 2/n sum x x^T of a layer's inputs, (groups, columns, columns)."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        inputs = inputs if inputs.dtype == torch.float64 else inputs.float()
        new = inputs.shape[1]
        if not new:
            return
        product = inputs.transpose(1, 2) @ inputs * (2 / (self.count + new))
        self.mean = product if self.mean is None else self.mean.mul_(self.count / (self.count + new)).add_(product)
        self.count += new


class Method(CalibratedMethod):
    """Algorithm 1 of the paper, by blocks of columns: a mask for each block, and an OBS update for each column."""

    options: SparsegptOptions

    def statistics(self, layer: Layer) -> Hessians:
        return Hessians()

    @torch.no_grad()
    def compress(self, layer: Layer, statistics: Statistics | None) -> None:
        if not isinstance(statistics, Hessians) or statistics.mean is None:
            return self.by_magnitude(layer)
        n, m = (self.pattern.options.n, self.pattern.options.m) if self.pattern.name == "nm" else (0, 0)  # type: ignore[attr-defined]
        stored = layer.weight.detach()
        rows = to_rows(layer, stored if stored.dtype == torch.float64 else stored.float())
        shares = _parts(layer.pruned, [one.numel() for one in rows])
        weights, keeps = [], []
        for weight, hessian, pruned in zip(rows, statistics.mean.to(stored.device), shares, strict=True):
            try:
                new, keep = sparsegpt(weight, hessian, pruned, (n, m), self.options.block, self.options.damping)
            except Stopped as error:
                raise Stopped(f"{layer.name}: {error}") from None
            weights.append(new)
            keeps.append(keep)
        stored.copy_(from_rows(layer, torch.stack(weights)))
        self.set_mask(layer, from_rows(layer, torch.stack(keeps)))


def sparsegpt(
    weight: Tensor, hessian: Tensor, pruned: int, nm: tuple[int, int], block: int, damping: float
) -> tuple[Tensor, Tensor]:
    """The new weight (rows, columns) and its bool mask: `pruned` weights in total go, or M - N of each M columns.

    `hessian` is (columns, columns); its diagonal is increased by `damping` times its mean. Weights of an input that is
    always zero are pruned first. Raises `Stopped` if the Hessian cannot be inverted.
    """
    columns = weight.shape[1]
    hessian = hessian.to(weight.dtype).clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    upper = _inverse(hessian, damping)
    n, m = nm
    block = max(m, block // m * m) if m else block
    starts = range(0, columns, block)
    weight = weight.clone()
    keep = torch.ones_like(weight, dtype=torch.bool)
    shares = _parts(pruned, [weight[:, start : start + block].numel() for start in starts])
    for start, share in zip(starts, shares, strict=True):
        end = min(start + block, columns)
        part, inverse, kept = weight[:, start:end], upper[start:end, start:end], keep[:, start:end]
        error = torch.zeros_like(part)
        if not m:
            kept &= keep_units(_saliency(part, inverse.diagonal(), dead[start:end]), share)
        for column in range(end - start):
            if m and column % m == 0:
                group = slice(column, column + m)
                saliency = _saliency(part[:, group], inverse.diagonal()[group], dead[start:end][group])
                order = saliency.sort(dim=1, stable=True).indices[:, : m - n]
                kept[:, group] = torch.ones_like(saliency, dtype=torch.bool).scatter_(1, order, False)
            gone = torch.where(kept[:, column], 0, part[:, column]) / inverse[column, column]
            part[:, column:] -= gone[:, None] * inverse[column, column:]
            part[:, column] *= kept[:, column]
            error[:, column] = gone  # (w - q) / d of the authors' code
        weight[:, end:] -= error @ upper[start:end, end:]
    return weight, keep


def _saliency(weight: Tensor, diagonal: Tensor, dead: Tensor) -> Tensor:
    """w^2 / [H_j^-1]_jj with H_j of the columns from j on, the factor's squared diagonal; 0 for a dead input."""
    return torch.where(dead, 0, (weight / diagonal).square())


def _inverse(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped Hessian."""
    mean = hessian.diagonal().mean()
    for _ in range(_TRIES):
        damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(upper.isfinite().all()):
                return upper
        damping *= 10
    raise Stopped("the calibration inputs are not finite, or their Hessian cannot be inverted: raise method.damping")


def _parts(pruned: int, sizes: list[int]) -> list[int]:
    """Divides `pruned` in proportion to sizes, with the exact total: differences of rounded cumulative sums."""
    total, done, given, parts = sum(sizes), 0, 0, []
    for size in sizes:
        done += size
        upto = (2 * pruned * done + total) // (2 * total)
        parts.append(upto - given)
        given = upto
    return parts
