"""Small models and loops that several tests share."""

import torch
from torch import nn

from pdp import Pruner


def small_net(classes: int = 4) -> nn.Sequential:
    """A convolution, a depthwise one, a norm and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def batch(seed: int = 0, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 8, 8, generator=generator).to(dtype), torch.randint(0, 4, (size,), generator=generator)


def train_epoch(model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, epoch: int, steps: int = 3) -> None:
    """One epoch of a plain loop."""
    pruner.start_epoch(epoch)
    for step in range(steps):
        images, labels = batch(100 * epoch + step)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
