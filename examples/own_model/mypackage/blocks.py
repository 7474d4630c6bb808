"""The parts of the model, in a file of their own."""

from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input goes as well."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        """(N, width, H, W), as it came."""
        return (images + self.second(self.first(images))).relu()
