"""One of several processes that prune a net under DDP; saves its weights and cuts. Run by test_processes.py."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from pdp import Pruner


def net() -> nn.Module:
    """A net without BatchNorm, in float64."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).double()


def train(rank: int, world: int, method: str) -> tuple[nn.Module, Pruner]:
    """Four epochs; every process takes its part of the same global batch."""
    model = net()
    pruner = Pruner(model, method, sparsity=0.8, epochs=4, schedule={"warmup": "1ep", "ramp": "2ep"})
    trained = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner.attach(optimizer)
    generator = torch.Generator().manual_seed(7)
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for _ in range(3):
            images = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
            labels = torch.randint(0, 4, (8,), generator=generator)
            part = slice(rank * 8 // world, (rank + 1) * 8 // world)
            nn.functional.cross_entropy(trained(images[part]), labels[part]).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    return model, pruner


def main(folder: str, method: str) -> None:
    """Trains as one rank and saves what it has."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, pruner = train(rank, dist.get_world_size(), method)
    state = {layer.name: dict(layer.state) for layer in pruner.layers}
    keep = {layer.name: pruner.method.keep(layer) for layer in pruner.layers}
    torch.save({"model": model.state_dict(), "state": state, "keep": keep}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2])
