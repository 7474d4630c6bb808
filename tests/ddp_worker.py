"""One of several processes that prune small nets under DDP, every method in turn; run by test_processes.py."""

import os

import torch
import torch.distributed as dist
from small_models import CASES, VARIANT_CASES, case_net, case_pruner, case_step
from torch import nn

from pdp import Pruner


def train(rank: int, world: int, method: str, pattern: str) -> tuple[nn.Module, Pruner]:
    """Four epochs; every process takes its part of the same global batch."""
    torch.manual_seed(5)
    # BatchNorm's statistics, which no two processes share, only where channels are pruned.
    model = case_net(norm=pattern == "channel")
    pruner = case_pruner(model, method, pattern, epochs=4)
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
            case_step(trained, pruner, optimizer, images[part], labels[part])
    return model, pruner


def what_is_left(model: nn.Module, pruner: Pruner) -> dict:
    """Weights, state and hard masks."""
    pruner.method.settle(pruner.layers)
    extras = dict(pruner.method.extras)
    if pruner.quantizer is not None:
        extras |= {f"scale of {name}": one for name, one in pruner.quantizer.extras.items()}
        extras["ranges"] = pruner.quantizer.ranges.average
    return {
        "model": model.state_dict(),
        "state": {layer.name: dict(layer.state) for layer in pruner.layers},
        "keep": {layer.name: pruner.method.keep(layer) for layer in pruner.layers},
        "extras": {name: extra.detach() for name, extra in extras.items()},
    }


def main(folder: str) -> None:
    """Trains as one rank and saves what it has."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    world = dist.get_world_size()
    left = {" ".join(case): what_is_left(*train(rank, world, *case)) for case in CASES + VARIANT_CASES}
    torch.save(left, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()
