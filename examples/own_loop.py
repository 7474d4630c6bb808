"""PDP in a training loop of your own, for each of the patterns: python examples/own_loop.py [random|2:4|4x1|channel]

Needs torch, numpy and pandas.
"""

import sys

import torch
from torch import Tensor, nn

import pdp

EPOCHS, STEPS = 10, 20
SPARSITY = {"random": 0.9, "2:4": None, "4x1": 0.8, "channel": 0.5}  # 2:4 implies its sparsity


class Net(nn.Module):
    """A small residual network for 12x12 images of three classes."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 12, 12) to (N, 3)."""
        hidden = self.stem(images)
        hidden = torch.relu(hidden + self.two(self.one(hidden)))
        return self.head(hidden.mean((2, 3)))


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Images with vertical stripes, horizontal stripes or a checkerboard, in noise, and their classes."""
    labels = torch.randint(3, (size,))
    line = torch.arange(12) % 2 * 2.0 - 1
    kinds = torch.stack([line[:, None].expand(12, 12), line[None].expand(12, 12), line[:, None] * line[None]])
    return 0.5 * kinds[labels][:, None] + torch.randn(size, 3, 12, 12), labels


def main(pattern: str = "random") -> float:
    """Trains, prunes, prints the layers and returns the accuracy on new images."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    example = torch.zeros(1, 3, 12, 12)

    # Dense for the first two epochs, then a linear ramp; times are "3ep", "200it" or a fraction of the run.
    schedule = {"warmup": "2ep", "ramp": "5ep"}
    pruner = pdp.Pruner(
        model, "pdp", pattern, SPARSITY[pattern], epochs=EPOCHS, schedule=schedule, example_input=example
    )
    for name, reason in pruner.skipped.items():
        print(f"stays dense: {name} ({reason})")

    for epoch in range(EPOCHS):
        pruner.start_epoch(epoch)
        for _ in range(STEPS):
            images, labels = batch(32)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    pruner.finalize()  # exact zeros in the weights, no hooks left

    model.eval()
    images, labels = batch(1000)
    accuracy = float((model(images).argmax(1) == labels).float().mean())
    print(pruner.report().to_string(index=False))
    print(pdp.count_macs(model, example)[["name", "macs", "sparse_macs"]].to_string(index=False))

    if pattern == "channel":
        # Removes the channels that are zero: a smaller model of the same class, which computes the same.
        slimmed = pdp.slim(model, example)
        parameters = [sum(one.numel() for one in net.parameters()) for net in (model, slimmed.model)]
        print(f"channels gone {slimmed.removed}; parameters {parameters[0]:,} -> {parameters[1]:,}")
        assert torch.allclose(slimmed.model(images), model(images), atol=1e-4)
    print(f"accuracy {accuracy:.1%} at {pruner.share:.1%} sparsity")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:])
