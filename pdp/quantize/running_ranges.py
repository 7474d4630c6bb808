"""The ranges of activations: moving averages of the smallest and the largest number of each step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdp.quantize.fake import ACTIVATION_LEVELS, widened

LEAST_SCALE = 1e-8
RATE = 0.01  # of the moving average, after the first hundred steps


class RunningRanges:
    """The ranges of `count` activations with the scales and zero points that follow from them, float32 on one device.

    `average` and `seen` are (2, count): smallest and largest; infinite for an activation that no step has reached.
    """

    def __init__(self, count: int, device: torch.device):
        self.average = torch.stack([torch.full((count,), math.inf), torch.full((count,), -math.inf)]).to(device)
        self.seen = self.average.clone()  # smallest and largest since the last step
        self.scales, self.zero_points = _affine(self.average)
        self.merged = 0  # number of steps in the average

    @property
    def known(self) -> Tensor:
        """Which activations have a range; (count,), bool."""
        return torch.isfinite(self.average).all(0)

    @property
    def filled(self) -> Tensor:
        """Which scales are those of a range, and not of zeros alone; (count,), bool."""
        return self.known & (self.scales > LEAST_SCALE)

    @torch.no_grad()
    def observe(self, number: int, values: Tensor) -> None:
        """Widens what this step has seen of an activation by `values`; moves to their device if need be."""
        if self.seen.device != values.device:
            self.to(values.device)
        least, largest = torch.aminmax(widened(values.detach()))
        self.seen[0, number] = torch.minimum(self.seen[0, number], least)
        self.seen[1, number] = torch.maximum(self.seen[1, number], largest)

    @torch.no_grad()
    def merge(self, fixed: Tensor | None = None) -> None:
        """Ends a step: averages in what all processes saw, first as a plain mean, then with weight 0.01.

        The scales and zero points of the activations in `fixed` (count,) stay as they are.
        """
        seen = self.seen
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            widest = torch.stack([-seen[0], seen[1]])
            torch.distributed.all_reduce(widest, torch.distributed.ReduceOp.MAX)
            seen = torch.stack([-widest[0], widest[1]])
        rate = max(1 / (self.merged + 1), RATE)
        there = torch.isfinite(seen).all(0)
        # What was only zero so far, as in a branch that begins at zero, is no range to average with: a hundredth of the
        # first one would cut off nearly all of it.
        filled = self.known & (_affine(self.average)[0] > LEAST_SCALE)
        mean = torch.where(filled, self.average + rate * (seen - self.average), seen)
        self.average = torch.where(there, mean, self.average)
        self.merged += 1
        scales, zero_points = _affine(self.average)
        if fixed is not None:
            fixed = fixed.to(scales.device)
            scales = torch.where(fixed, self.scales, scales)
            zero_points = torch.where(fixed, self.zero_points, zero_points)
        self.scales, self.zero_points = scales, zero_points
        self._forget_seen()

    def to(self, device: torch.device) -> None:
        """Moves everything to the device on which the model computes."""
        self.average, self.seen = self.average.to(device), self.seen.to(device)
        self.scales, self.zero_points = self.scales.to(device), self.zero_points.to(device)

    def restore(self, average: Tensor, zero_points: Tensor, merged: int, scales: Tensor | None = None) -> None:
        """Goes on from a saved state; what the present step has seen is dropped.

        `scales` are those that no longer follow from the average.
        """
        device = self.average.device
        self.average, self.zero_points = average.to(device, copy=True), zero_points.to(device, copy=True)
        self.scales = _affine(self.average)[0] if scales is None else scales.to(device, copy=True)
        self.merged = merged
        self._forget_seen()

    def _forget_seen(self) -> None:
        self.seen[0].fill_(math.inf)
        self.seen[1].fill_(-math.inf)


def _affine(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point for 0..255 from ranges (2, n); every range is extended to zero, which is on the grid."""
    low, high = ranges[0].clamp(max=0), ranges[1].clamp(min=0)
    scale = ((high - low) / ACTIVATION_LEVELS).clamp(min=LEAST_SCALE)
    return scale, torch.round(-low / scale).clamp(0, ACTIVATION_LEVELS)
