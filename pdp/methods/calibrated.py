"""Methods that prune a trained model at one stroke from what its layers are given on calibration samples.

A layer is seen as `groups` independent problems of rows (outputs) and columns (inputs): a linear layer is one, a
grouped convolution one for each group, its inputs unfolded so that a column is an input channel at a kernel position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.errors import Refusal
from pdp.layers import Layer, is_conv1d
from pdp.masks.cut import keep_units
from pdp.methods import method
from pdp.methods.masked import MaskedMethod


class Statistics(ABC):
    """What a layer's inputs are summed up to, in memory that does not grow with the samples."""

    @abstractmethod
    def add(self, inputs: Tensor) -> None:
        """Takes inputs, (groups, samples, columns)."""


class CalibratedMethod(MaskedMethod):
    """A mask made once by `compress`, layer by layer, before any training; it holds from then on."""

    schedule = "constant"
    allocation = "uniform"
    zeroes = True
    calibrates = True

    @property
    def calibrated(self) -> bool:
        """Whether the masks are made."""
        return self.fraction == 1

    def refuses(self, layer: Layer) -> str | None:
        for site in layer.sites:
            module = site.module
            if isinstance(module, _ConvTransposeNd):
                return "a transposed convolution, whose inputs are not gathered"
            if isinstance(module, nn.Conv3d):
                return "a 3-d convolution, whose inputs are not gathered"
            known = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or is_conv1d(module)
            if site.caller is not module or site.parameter != "weight" or not known:
                return f"read by {type(site.caller).__name__} itself, so that its inputs are not seen"
        return None

    def begin(self, layers: Sequence[Layer], plan: method.Plan) -> None:
        super().begin(layers, plan)
        if plan.allocation == "global":
            raise Refusal(
                f"allocation=global has no meaning for method={self.options.name}, which prunes one block after "
                "another: give allocation=uniform, erk or file"
            )

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not self.calibrated:
            raise Refusal(
                f"method={self.options.name} needs calibration samples: call pruner.calibrate(batches) before "
                "training, or give Pruner(..., calibration=batches)"
            )

    def due(self, moment: method.Moment) -> bool:
        return False

    @abstractmethod
    def statistics(self, layer: Layer) -> Statistics:
        """An empty sum of the layer's inputs."""

    @abstractmethod
    def compress(self, layer: Layer, statistics: Statistics | None) -> None:
        """Prunes the layer's `pruned` units in place; without statistics, where no input reached it, by magnitude."""

    def by_magnitude(self, layer: Layer) -> None:
        """The mask of the largest weights."""
        self.set_mask(layer, self.pattern.keep(layer, layer.weight.detach().abs()))

    def keep_scored(self, layer: Layer, scores: Tensor) -> Tensor:
        """The mask by scores (groups, rows, columns): in each row, or in each group of M, the largest stay."""
        if self.pattern.name == "nm":
            return self.pattern.keep(layer, from_rows(layer, scores))
        keep = keep_in_rows(scores.flatten(0, 1), layer.pruned).unflatten(0, scores.shape[:2])
        return from_rows(layer, keep)


def keep_in_rows(scores: Tensor, pruned: int) -> Tensor:
    """Which of (rows, columns) stay when `pruned` go in all, bool: as many in each row, its smallest.

    What does not divide by the rows goes where the next smallest is smallest. Ties go by the lowest index first.
    """
    rows, columns = scores.shape
    each, more = divmod(pruned, rows)
    ordered = scores.sort(dim=1, stable=True)
    counts = torch.full((rows, 1), each, dtype=torch.int64, device=scores.device)
    if more:
        counts += ~keep_units(ordered.values[:, each], more)[:, None]
    going = torch.arange(columns, device=scores.device) < counts
    return ~torch.zeros_like(going).scatter_(1, ordered.indices, going)


def group_count(module: nn.Module) -> int:
    """How many independent problems the layer is: the groups of a convolution, else one."""
    return module.groups if isinstance(module, _ConvNd) else 1


def to_rows(layer: Layer, weight: Tensor) -> Tensor:
    """A tensor of the weight's shape as (groups, rows, columns); of a convolution, channels are innermost."""
    module = layer.sites[0].module
    if is_conv1d(module):
        return weight.t()[None]
    rows = weight.movedim(1, -1).flatten(1) if isinstance(module, _ConvNd) else weight
    return rows.unflatten(0, (group_count(module), -1))


def from_rows(layer: Layer, rows: Tensor) -> Tensor:
    """The inverse of `to_rows`."""
    module, flat = layer.sites[0].module, rows.flatten(0, 1)
    if is_conv1d(module):
        return flat.t().contiguous()
    if isinstance(module, _ConvNd):
        kernel = layer.weight.shape[2:]
        return flat.unflatten(1, (*kernel, -1)).movedim(-1, 1).contiguous()
    return flat


def inputs_of(module: Any, inputs: Tensor) -> Tensor:
    """What each output of the layer is computed from, (groups, samples, columns) in the order of `to_rows`."""
    if not isinstance(module, _ConvNd):
        return inputs.flatten(0, -2)[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    dims = len(module.kernel_size)
    if inputs.dim() == dims + 1:
        inputs = inputs[None]
    padded = functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if dims == 1:
        padded = padded[:, :, None]
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    unfolded = functional.unfold(padded, kernel, dilation, 0, stride)
    positions = kernel[0] * kernel[1]
    parts = unfolded.unflatten(1, (module.groups, -1, positions))  # (N, groups, channels, positions, places)
    return parts.permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)
