"""ResNet-20 for small images (He et al. 2016, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut (option A): every second pixel, and zeros for the new channels."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.new_channels = new_channels

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + new_channels, ceil(H / 2), ceil(W / 2))."""
        before = self.new_channels // 2
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, before, self.new_channels - before))


class ResNet20(nn.Module):
    """Three stages of three basic blocks with 16, 32 and 64 channels; accepts images of any size from 1x1.

    `shortcut` is "projection", a 1x1 convolution with batch norm where the size changes (option B; 272,474 parameters
    at 10 classes), or "pad" (option A; 269,722 parameters).
    """

    def __init__(self, num_classes: int = 10, shortcut: str = "projection"):
        super().__init__()
        if shortcut not in ("projection", "pad"):
            raise ValueError(f"shortcut={shortcut} can be projection or pad")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, shortcut)
        self.layer2 = _stage(16, 32, 2, shortcut)
        self.layer3 = _stage(32, 64, 2, shortcut)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes)."""
        features = functional.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(features, 1), 1))


def _stage(inputs: int, outputs: int, stride: int, shortcut: str) -> nn.Sequential:
    across: nn.Module | None = None
    if stride != 1:
        across = (
            PaddedShortcut(outputs - inputs)
            if shortcut == "pad"
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, across), BasicBlock(outputs, outputs), BasicBlock(outputs, outputs)
    )
