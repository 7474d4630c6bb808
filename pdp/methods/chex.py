"""CHEX: channel exploration (Hou et al. 2022, zejiangh/Filter-GaP): prunes by leverage, regrows by sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.layers import Layer
from pdp.masks.cut import keep_units
from pdp.methods import method
from pdp.methods.channel_norms import norm_scales, scale_saliency
from pdp.methods.masked import MaskedMethod
from pdp.methods.options import ChexOptions


class Method(MaskedMethod):
    """Every `update_every` epochs until `end`: layer shares by one cut over all |gamma|, pruning by leverage, regrowth.

    Masked channels count as zeros. So each layer keeps, among the channels that are computed at present, those with the
    highest leverage scores. Some of the others then regrow with the values that they last had: as many in each layer as
    the cut at share S - d_e keeps more than the cut at S, with d_e = d_0 (1 + cos(pi e / E_end)) / 2. They are sampled
    by the part of their weights that is not in the span of the kept ones. From `end` on the masks are fixed and nothing
    regrows. Two things differ from the authors' code: the stored values of a pruned channel still decay with the weight
    decay, and its running statistics are not restored.
    """

    schedule = "constant"
    allocation = "global"
    comparable = True
    options: ChexOptions

    @property
    def exact(self) -> bool:
        """Whether the target share is met exactly: only by the final masks, as before regrown channels are kept too."""
        return bool(self.fraction)

    @property
    def takes_budget(self) -> bool:
        return False

    def refuses(self, layer: Layer) -> str | None:
        return None if norm_scales(layer) else "no BatchNorm scales it"

    def saliency(self, layer: Layer) -> Tensor:
        scales = scale_saliency(layer)
        return scales * layer.state["keep"] if "keep" in layer.state else scales

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        """Does nothing here: `update` sets the shares, which change with the regrowth."""

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if self.plan.target is None or not (moment.epoch_start or moment.final):
            return
        if not self.masked and not moment.final:
            share = max(0.0, self.plan.target - self.options.regrow)
            for layer, count in zip(layers, self.plan.budget(share, "uniform"), strict=True):
                self._mask(layer, keep_units(matrix(layer).abs().sum(0).float(), count))
            return
        end = self.plan.epochs_of(self.options.end, "method.end")
        if moment.final or moment.epoch >= end:
            if not self.fraction:
                self.fraction = 1.0  # the final masks
                self._explore(layers, 0.0, moment)
        elif moment.epoch and moment.epoch % self.options.update_every == 0:
            self._explore(layers, self.options.regrow * 0.5 * (1 + math.cos(math.pi * moment.epoch / end)), moment)

    def _explore(self, layers: Sequence[Layer], regrow: float, moment: method.Moment) -> None:
        assert self.plan.target is not None
        down = self.plan.budget(self.plan.target, None)
        up = self.plan.budget(max(0.0, self.plan.target - regrow), None) if regrow else down
        generator = torch.Generator().manual_seed(1_000_003 * (self.plan.seed + 1) + moment.epoch)
        for layer, count, fewer in zip(layers, down, up, strict=True):
            weights = matrix(layer)
            held = layer.state.get("keep", torch.ones_like(weights[0], dtype=torch.bool))
            # If their rank is below `kept`, a singular vector may lie along a zero column, which must not get a high
            # score.
            scores = torch.where(held, leverage(weights * held, layer.units - count), -1.0)
            keep = keep_units(scores, count)
            if fewer < count:
                out = (~keep).nonzero().reshape(-1)
                chances = outside(weights[:, keep], weights[:, out]).softmax(0)
                taken = torch.multinomial(chances, count - fewer, generator=generator)
                keep[out[taken.to(out.device)]] = True
            self._mask(layer, keep)

    def _mask(self, layer: Layer, keep: Tensor) -> None:
        layer.pruned, layer.active = int((~keep).sum()), True
        self.set_mask(layer, keep)


def matrix(layer: Layer) -> Tensor:
    """The layer's weights as (fan-in, units), with everything coupled to a unit in its column; float64."""
    parts = []
    for member in layer.members:
        if member.weighs:
            assert member.units is not None
            rows = member.rows(member.tensor.detach()).double().flatten(1)
            units = member.units.to(rows.device)
            # Several slices of one weight can belong to one unit, and some to none, whose number is the last.
            order = units.argsort(stable=True)[: int((units < layer.units).sum())]
            slices = len(order) // layer.units
            parts.append(rows[order].reshape(layer.units, slices * rows.shape[1]))
    return torch.cat(parts, 1).t()


def leverage(weights: Tensor, kept: int) -> Tensor:
    """Leverage scores (units,): squared row norms of the first `kept` right singular vectors of `weights`.

    `weights` is float64, (fan-in, units). If the fan-in is smaller than the number of units, the L1 norm of each column
    is used. The scores are rounded to float32, so that equal columns have equal scores.
    """
    if weights.shape[0] < weights.shape[1]:
        return weights.abs().sum(0).float()
    _, _, right = torch.linalg.svd(weights, full_matrices=False)
    return right[:kept].square().sum(0).float()


def outside(base: Tensor, columns: Tensor) -> Tensor:
    """The norm of each of `columns` minus its projection onto the span of `base`; float64, on the CPU."""
    base, columns = base.double().cpu(), columns.double().cpu()
    return (columns - base @ (torch.linalg.pinv(base) @ columns)).norm(dim=0)
