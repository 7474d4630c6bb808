"""recipe.on_nonfinite=skip: an optimizer step with a non-finite loss or gradient is skipped and changes nothing."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pdp.errors import Stopped

MOST_IN_A_ROW = 50  # consecutive skipped steps after which the run is stopped


class SkipGuard:
    """Checks every optimizer step before it is taken; the check waits for the device."""

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.accelerator = accelerator
        self.buffers = list(model.buffers())  # BatchNorm's averages change before the loss is known
        self.before = [buffer.clone() for buffer in self.buffers]
        self.losses: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """To be called before the first micro-batch of an optimizer step."""
        self.losses.clear()
        for before, buffer in zip(self.before, self.buffers, strict=True):
            before.copy_(buffer)

    def add(self, loss: Tensor) -> None:
        """Adds a micro-batch's loss."""
        self.losses.append(loss.detach())

    @torch.no_grad()
    def is_finite(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the losses of all processes, and the gradients, are finite; if not, restores the model's buffers."""
        sum_of_all = torch.stack(self.losses).sum().float()
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        # With loss scaling, overflowing gradients are normal, and the scaler itself skips such steps.
        if gradients and not self.accelerator.scaler:
            sum_of_all = sum_of_all + torch.nn.utils.get_total_norm(gradients)
        bad = (~sum_of_all.isfinite()).float()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, "sum")
        if not bad:
            return True
        for before, buffer in zip(self.before, self.buffers, strict=True):
            buffer.copy_(before)
        return False


def check_in_a_row(skipped: int, step: int) -> None:
    """Raises `Stopped` after `MOST_IN_A_ROW` consecutive skipped steps."""
    if skipped >= MOST_IN_A_ROW:
        raise Stopped(
            f"recipe.on_nonfinite=skip: the last {skipped} steps before step {step} all had a loss or gradients that "
            "are not finite: lower recipe.lr, give recipe.clip=1.0 or a longer recipe.lr_warmup"
        )
