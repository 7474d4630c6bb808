"""A small network with couplings of every kind, a channel pruner for it, and a short training."""

import torch
from small_models import batch
from torch import nn

from pdp import Pruner

NOW = {"warmup": "0ep", "ramp": "1ep"}
IMAGE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """A stem, a sum of two branches, a depthwise convolution, a classifier; biases where there may be some."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.two, self.norm2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.norm3 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.last, self.norm4 = nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10 * 4, 4)

    def features(self, x):
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm1(self.one(x)) + self.norm2(self.two(x))).relu()
        x = self.norm3(self.deep(x)).relu()
        return x, self.norm4(self.last(x)).relu()

    def forward(self, x):
        middle, last = self.features(x)
        return self.head(nn.functional.adaptive_avg_pool2d(last, 2).flatten(1))


def make(model=None, method="pdp", **values):
    model = Residual() if model is None else model
    values = {"sparsity": 0.5, "epochs": 4, "schedule": NOW, "example_input": IMAGE, "temperature": 1e-3} | values
    if method != "pdp":
        values.pop("temperature")
    return model, Pruner(model, method, "channel", **values)


def train(model, pruner, epochs=range(3), steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for epoch in epochs:
        pruner.start_epoch(epoch)
        for step in range(steps):
            images, labels = batch(step)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
