"""Threads that run the same model at the same time: each has its own graph and effective weights."""

import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from reading_net import NOW, ROWS, TAU, expected, pruned
from torch import nn

from pdp import Pruner
from pdp.masks.soft import soft_prune


@pytest.mark.parametrize("apart", ["", "encoder"])
def test_threads_have_graphs_of_their_own(apart):
    """One of the threads may call a part alone, whose weight the whole model's forward reads besides."""
    model, pruner = pruned()
    weights = [layer.weight for layer in pruner.layers]
    calls = {id(model): (model, ROWS, weights, expected(pruner))}
    if apart:
        layer = next(layer for layer in pruner.layers if layer.name == apart)
        outputs = F.linear(ROWS, soft_prune(layer.weight, layer.state["cut"], TAU), model.encoder.bias)
        slope = torch.autograd.grad(outputs.square().mean(), layer.weight)
        calls[id(model.encoder)] = (model.encoder, ROWS, [layer.weight], (outputs.detach(), slope))
    wrong, done, before = [], [], sys.getswitchinterval()

    def work(called, rows, weights, right):
        for _ in range(25):
            outputs = called(rows)
            gradients = torch.autograd.grad(outputs.square().mean(), weights)
            pairs = zip((outputs, *gradients), (right[0], *right[1]), strict=True)
            wrong.extend(1 for mine, theirs in pairs if not torch.allclose(mine, theirs, atol=1e-4))
        done.append(1)

    threads = [threading.Thread(target=work, args=one) for one in (list(calls.values()) * 3)[:3]]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong and len(done) == 3


def test_a_part_that_reads_a_weight_while_another_thread_is_inside_its_module_gets_its_own():
    """As a tied decoder does, which never calls the module whose weight it reads."""

    inside, read, found = threading.Event(), threading.Event(), []

    class Waits(nn.Linear):
        def forward(self, x):
            if threading.current_thread() is not threading.main_thread():
                inside.set()
                read.wait(20)
            return super().forward(x)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Waits(16, 16, bias=False)

        def forward(self, x, decode=False):
            return F.linear(x, self.inner.weight.t()) if decode else self.inner(x)

    torch.manual_seed(0)
    model = nn.Sequential(Tied(), nn.Linear(16, 4))
    pruner = Pruner(model, sparsity=0.6, epochs=4, schedule=NOW, temperature=TAU)
    pruner.start_epoch(0)
    thread = threading.Thread(target=lambda: found.append(model(ROWS)))
    thread.start()
    assert inside.wait(20)
    mine = model[0](ROWS, decode=True)
    read.set()
    thread.join()
    found[0].sum().backward()
    mine.sum().backward()
    nodes = [set(), set()]
    for seen, output in zip(nodes, (found[0], mine), strict=True):
        left = [output.grad_fn]
        while left:
            node = left.pop()
            if node is not None and node not in seen:
                seen.add(node)
                left += [one for one, _ in node.next_functions]
    assert {node.name() for node in nodes[0] & nodes[1]} == {"torch::autograd::AccumulateGrad"}
