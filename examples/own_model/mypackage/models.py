"""A model as anybody has one: nothing in it knows of pruning."""

from torch import Tensor, nn

from mypackage.blocks import Residual


class MyNet(nn.Module):
    """A small residual network; `num_classes` is what the harness passes, the rest model.arguments."""

    def __init__(self, num_classes: int, width: int = 16, blocks: int = 2):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.body = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to the logits, (N, num_classes)."""
        return self.classifier(self.body(self.stem(images)).mean((2, 3)))


def narrow(num_classes: int) -> MyNet:
    """A function does as well as a class."""
    return MyNet(num_classes, width=8, blocks=1)
