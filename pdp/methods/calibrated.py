"""Methods that prune a trained model in a single step, from the inputs that its layers get on calibration samples.

A layer is treated as `groups` independent problems with rows (outputs) and columns (inputs). A linear layer is one
problem; a grouped convolution is one for each group, with its inputs unfolded so that each column is an input channel
at a kernel position.
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
    """Statistics of a layer's inputs, in memory that does not grow with the number of samples."""

    @abstractmethod
    def add(self, inputs: Tensor) -> None:
        """Adds inputs, (groups, samples, columns)."""


class CalibratedMethod(MaskedMethod):
    """A mask that `compress` makes once, layer by layer, before any training; it stays from then on."""

    schedule = "constant"
    allocation = "uniform"
    zeroes = True
    calibrates = True

    @property
    def calibrated(self) -> bool:
        """Whether the masks have been made."""
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
        """Empty statistics for the layer's inputs."""

    @abstractmethod
    def compress(self, layer: Layer, statistics: Statistics | None) -> None:
        """Prunes the layer's `pruned` units in place; by magnitude if `statistics` is None (no input reached it)."""

    def by_magnitude(self, layer: Layer) -> None:
        """Makes the mask that keeps the largest weights."""
        self.set_mask(layer, self.pattern.keep(layer, layer.weight.detach().abs()))

    def keep_scored(self, layer: Layer, scores: Tensor) -> Tensor:
        """Makes the mask from scores (groups, rows, columns): in each row, or in each group of M, the largest stay."""
        if self.pattern.name == "nm":
            return self.pattern.keep(layer, from_rows(layer, scores))
        keep = keep_in_rows(scores.flatten(0, 1), layer.pruned).unflatten(0, scores.shape[:2])
        return from_rows(layer, keep)


def keep_in_rows(scores: Tensor, pruned: int) -> Tensor:
    """Bool mask (rows, columns) of what stays when `pruned` in total go: the smallest of each row, equally many.

    If `pruned` is not a multiple of the rows, the rest is taken from the rows whose next score is smallest. Among equal
    scores the lowest index is pruned first.
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
    """The number of independent problems in a layer: the groups of a convolution, else one."""
    return module.groups if isinstance(module, _ConvNd) else 1


def to_rows(layer: Layer, weight: Tensor) -> Tensor:
    """A tensor shaped like the weight as (groups, rows, columns); a convolution's channels are innermost."""
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
    """The inputs of each output of the layer, (groups, samples, columns), with columns in the order of `to_rows`."""
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
