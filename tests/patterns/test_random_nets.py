"""Random small nets: masked, finalized and slim models compute the same, or the net is refused with a reason."""

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import pdp

NOW = {"warmup": "0ep", "ramp": "1ep"}
ACTIVATIONS = [
    torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.cos, torch.square, F.softplus, F.gelu, F.silu, F.hardswish,
    F.hardsigmoid, F.elu, F.mish, torch.abs, torch.sin, lambda x: x + 0.3, lambda x: 2 - x, lambda x: x.clamp(min=0.2),
    lambda x: x / (1 + x.abs()), lambda x: x * x.mean((2, 3), keepdim=True), lambda x: torch.where(x > 0, x, 0.1 * x - 1),
    lambda x: x.softmax(1), lambda x: x - x.mean(1, keepdim=True), lambda x: x / (x.sum(1, keepdim=True).abs() + 1),
    lambda x: F.normalize(x, dim=1), lambda x: x.flip(1), lambda x: x.sort(1).values, lambda x: x.cumsum(1),
    lambda x: x.roll(1, 1), lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), lambda x: x.logsumexp((2, 3), keepdim=True) + x,
    lambda x: x * x.amax(1, keepdim=True), lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    lambda x: x.softmax(-1), lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), lambda x: x.clone().mul_(2),
]  # fmt: skip
NORMS = [
    nn.BatchNorm2d, lambda c: nn.BatchNorm2d(c, affine=False), nn.InstanceNorm2d, lambda c: nn.GroupNorm(2, c),
    lambda c: nn.GroupNorm(c, c), lambda c: nn.GroupNorm(1, c), nn.Identity, lambda c: nn.PReLU(c), lambda c: nn.PReLU(),
    lambda c: nn.InstanceNorm2d(c, affine=True), lambda c: nn.LayerNorm([6, 6]),
]  # fmt: skip
KINDS = [
    "chain",
    "sum",
    "cat",
    "split",
    "gate",
    "again",
    "depthwise",
    "groups",
    "scale",
    "squeeze",
    "constant",
    "dense",
]


class Step(nn.Module):
    """One step of a net on (N, 8, 6, 6)."""

    def __init__(self, kind, activation, norm, bias):
        super().__init__()
        self.kind, self.act = kind, ACTIVATIONS[activation]
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1, bias=bias), nn.Conv2d(8, 8, 1, bias=bias)
        self.norm = NORMS[norm](8)
        self.join = nn.Conv2d(16 if kind in ("cat", "dense") else 4 if kind == "split" else 8, 8, 1)
        self.after = nn.BatchNorm2d(16) if kind == "dense" else None
        self.deep = nn.Conv2d(8, 8 if kind == "groups" else 16, 3, padding=1, groups=2 if kind == "groups" else 8)
        self.last = nn.Conv2d(16, 8, 1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x):
        y = self.act(self.norm(self.a(x)))
        if self.kind == "sum":
            return self.join(y + self.b(x))
        if self.kind == "cat":
            return self.join(torch.cat([y, self.b(x)], 1))
        if self.kind == "dense":
            return self.join(self.after(torch.cat([y, self.b(y)], 1)).relu())
        if self.kind == "split":
            first, second = y.chunk(2, 1)
            return self.join(first * second.sigmoid())
        if self.kind == "gate":
            return self.join(y * self.b(y.mean((2, 3), keepdim=True)).sigmoid())
        if self.kind == "again":
            return self.join(self.b(self.act(self.b(y))))
        if self.kind == "depthwise":
            return self.last(self.deep(y))
        if self.kind == "groups":
            return self.join(self.deep(y))
        if self.kind == "scale":
            return x + self.join(y * self.gain)
        if self.kind == "squeeze":
            return self.join(self.act(self.norm(y).flatten(2)).unflatten(2, (6, 6)) + x)
        if self.kind == "constant":
            return self.join(y + self.shift)
        return self.join(y)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, len(ACTIVATIONS) - 1),
        st.integers(0, len(NORMS) - 1),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


def far(one, other):
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


def check(model, inputs):
    """Whether channels were pruned; asserts that all ways to be without them are one function."""
    try:
        pruner = pdp.Pruner(
            model,
            pattern="channel",
            sparsity=0.4,
            epochs=2,
            schedule=NOW,
            allocation="uniform",
            example_input=inputs[:1],
            pattern_options={"prune_stem": True},
        )
    except pdp.Refusal:
        return False
    pruner.start_epoch(0)
    model.eval()
    with torch.no_grad():
        with pruner.hard():
            hard = model(inputs)
        with pruner.baked() as baked:
            for name in pruner.prunable_weights:
                assert baked.get_submodule(name) is not None
        # Cold, the soft mask is the hard one.
        for layer in pruner.layers:
            for key, value in layer.state.items():
                if key == "mask":
                    value.copy_(pruner.method.keep(layer).float())
        soft = model(inputs)
        pruner.finalize()
        final = model(inputs)
        small = pdp.slim(model, inputs[:1]).model.eval()(inputs)
    scale = 1e-4
    assert far(hard, final) < scale, "hard and finalized"
    assert far(soft, final) < scale, "soft and finalized"
    assert far(final, small) < scale, "finalized and slim"
    return True


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(0, 5))
def test_masked_finished_and_slim_are_one_function_or_the_net_is_refused(steps, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        *(Step(*one) for one in steps),
        nn.Conv2d(8, 8, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.5)
    check(model, torch.randn(3, 3, 6, 6, dtype=torch.float64))
