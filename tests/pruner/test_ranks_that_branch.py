"""Processes that use different layers in a step: the methods' parameters are still averaged."""

import pytest
import torch
import torch.distributed as dist
from forked_ranks import in_ranks
from torch import nn

from pdp import Pruner


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.idle = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, left):
        return self.one(x)[:, :8] if left else self.two(x)


def rank(folder):
    dist.init_process_group("gloo")
    number = dist.get_rank()
    torch.manual_seed(0)
    model = Two()
    pruner = Pruner(model, "movement", "random", 0.5, epochs=1, schedule="constant", steps_per_epoch=3)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.attach(optimizer)
    pruner.start_epoch(0)
    extras = pruner.method.extras
    wrapped(torch.full((2, 8), 1.0 + number), left=number == 0).square().mean().backward()
    own = extras["one" if number == 0 else "two"].grad.clone()
    pruner.after_backward()
    found = {name: one.grad if one.grad is None else one.grad.clone() for name, one in extras.items()}
    optimizer.step()
    pruner.step()
    pruner.finalize()
    sums = [float(one.detach().double().sum()) for one in model.parameters()]
    torch.save({"own": own, "found": found, "sums": sums}, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_extra_is_averaged_on_every_process(tmp_path):
    in_ranks(2, rank, tmp_path, log=tmp_path / "log")
    left = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (0, 1)]
    for one in left:
        assert one["found"]["idle"] is None
        assert (one["found"]["one"] == left[0]["own"] / 2).all() and (one["found"]["two"] == left[1]["own"] / 2).all()
    assert left[0]["sums"] == left[1]["sums"]
