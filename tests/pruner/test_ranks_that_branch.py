"""Processes that use different layers in a step: the methods' parameters are still averaged."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from pdp import Pruner


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.idle = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, left):
        return self.one(x)[:, :8] if left else self.two(x)


def rank(number, path, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=number, world_size=2)
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
    queue.put((number, own.numpy(), {k: None if v is None else v.numpy() for k, v in found.items()}))
    queue.put((number, [float(one.detach().double().sum()) for one in model.parameters()]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_extra_is_averaged_on_every_process(tmp_path):
    queue = mp.get_context("spawn").Queue()
    group = mp.spawn(rank, (tmp_path / "meeting", queue), nprocs=2, join=False)
    answers = [queue.get(timeout=120) for _ in range(4)]
    while not group.join(30):
        pass
    gradients = {one[0]: one[1:] for one in answers if len(one) == 3}
    weights = [one[1] for one in answers if len(one) == 2]
    for _, found in gradients.values():
        assert found["idle"] is None
        assert (found["one"] == gradients[0][0] / 2).all() and (found["two"] == gradients[1][0] / 2).all()
    assert weights[0] == weights[1]
