"""A net whose weights are read outside of their own modules, with what its masked results must be."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdp import Pruner
from pdp.masks.soft import soft_prune

NOW = {"warmup": "0ep", "ramp": "1ep"}
ROWS = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
TAU = 1e-2


class Attention(nn.Module):
    """Reads one child's weight, calls the other."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 16, bias=False), nn.Linear(16, 16)

    def forward(self, x):
        return self.proj(F.linear(x, self.qkv.weight).relu())


class Net(nn.Module):
    """`kind` says how the attention is called; behind it lies a layer that is called and transposed."""

    def __init__(self, kind="called"):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.encoder, self.head = Attention(), nn.Linear(16, 8), nn.Linear(16, 4)
        self.kind, self.between = kind, lambda model: None

    def attend(self, x):
        return self.attention.proj(F.linear(x, self.attention.qkv.weight).relu())

    def forward(self, x):
        self.between(self)
        if self.kind == "called":
            x = x + self.attention(x)
        elif self.kind == "module checkpointed":
            x = x + checkpoint(self.attention, x, use_reentrant=False)
        else:
            x = x + checkpoint(self.attend, x, use_reentrant=self.kind == "reentrant")
        x = x + F.linear(self.encoder(x).tanh(), self.encoder.weight.t())
        return self.head(x)


def pruned(kind="called", **values):
    model = Net(kind)
    values = {"sparsity": 0.6, "epochs": 4, "schedule": NOW, "temperature": TAU} | values
    pruner = Pruner(model, **values)
    pruner.start_epoch(0)
    return model, pruner


def expected(pruner, inputs=ROWS):
    """Outputs and gradients of a plain model whose weights are the masked ones, by the formula."""
    plain = Net()
    plain.load_state_dict(pruner.model.state_dict())
    stored = {one.parameter: one.weight.detach().clone().requires_grad_() for one in pruner.layers}
    cuts = {one.parameter: one.state["cut"] for one in pruner.layers}
    masked = {name: soft_prune(weight, cuts[name], TAU) for name, weight in stored.items()}
    outputs = torch.func.functional_call(plain, masked, (inputs,))
    return outputs.detach(), torch.autograd.grad(outputs.square().mean(), list(stored.values()))


def assert_masked(pruner, outputs, gradients):
    right, slopes = expected(pruner)
    assert torch.allclose(outputs, right, atol=1e-5)
    for mine, theirs in zip(gradients, slopes, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
