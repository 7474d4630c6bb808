"""Tests of the GPU's kernels, run by Triton's interpreter on machines without a GPU (see test_gpu.py)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_formulas import reference

from pdp import Pruner
from pdp.kernels.gpu import selection, usable
from pdp.kernels.gpu.cuts import Cuts
from pdp.kernels.gpu.joint import Joint, Part
from pdp.kernels.gpu.launching import launch
from pdp.kernels.gpu.masks import alike, device_prune
from pdp.masks.soft import soft_prune
from pdp.patterns.pattern import Pattern

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts bfloat16 off instead of rounding.
LOWER = torch.bfloat16 if torch.cuda.is_available() else torch.float16
LAST = {"memory_format": torch.channels_last}


def sorted_cut(weight, pruned):
    """The definition: a sort, float32 all along."""
    if pruned <= 0 or pruned >= weight.numel():
        return -math.inf if pruned <= 0 else math.inf
    ordered = weight.detach().float().abs().reshape(-1).cpu().sort().values
    return float(ordered[pruned - 1] + (ordered[pruned] - ordered[pruned - 1]) * 0.5)


def check_cuts(cuts, weights, pruned):
    found = cuts.find(weights, pruned).tolist()
    np.testing.assert_array_equal(found, [sorted_cut(*case) for case in zip(weights, pruned, strict=True)])


@settings(max_examples=25)
@given(
    layers=st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, -0.0, 1e-40, 0.5, -0.5, 0.50000006, 3.0, -3e38, math.inf]), max_size=40),
            st.integers(1, 60),
            st.floats(0, 1),
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 9),
)
def test_cuts_are_the_sorted_ones_whatever_the_values(layers, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.cat([torch.tensor(odd), torch.randn(more, generator=generator)]) for odd, more, _ in layers]
    weights = [one[torch.randperm(one.numel(), generator=generator)].to(DEVICE) for one in weights]
    pruned = [int(share * one.numel() + 0.5) for one, (_, _, share) in zip(weights, layers, strict=True)]
    cuts = Cuts(weights)
    for _ in range(2):
        check_cuts(cuts, weights, pruned)


def test_cuts_follow_the_weights_near_and_far():
    last = (torch.randn(40, 32, 3, 3) * 0.1).contiguous(**LAST)
    weights = [torch.randn(100, 130) * 0.05, torch.randn(9000), torch.zeros(5000), last, torch.randn(5)]
    weights = [one.to(DEVICE) for one in weights]
    cuts = Cuts(weights)
    near = 0
    shares, moves = (0.5, 0.5, 0.5, 0.51, 0.9, 0.9, 0.9, 0, 1), (0, 1e-5, 1e-3, 0, 0, 3e-4, 3, 0, 0)
    for share, moved in zip(shares, moves, strict=True):
        for one in weights:
            one.mul_(1 + moved * torch.randn_like(one))
        check_cuts(cuts, weights, [int(share * one.numel() + 0.5) for one in weights])
        near += int(cuts.inside.sum())
    assert near  # some of them lay where they were looked for


def test_many_equal_magnitudes_overflow_what_is_kept_near_the_cut():
    weight = torch.ones(9000, device=DEVICE)
    weight[:100] = 2
    cuts = Cuts([weight])
    for pruned in (50, 8899, 8900, 8901, 8901, 8901):
        check_cuts(cuts, [weight], [pruned])


@pytest.mark.parametrize("left", [1, 3, 5000])
def test_a_cut_is_found_near_the_last_one_though_its_neighbours_lie_far_apart(left):
    """Where few are left, the smallest kept magnitude is percents above the largest pruned one."""
    weight = torch.randn(60000, device=DEVICE) * 0.02
    cuts = Cuts([weight])
    for _ in range(4):
        check_cuts(cuts, [weight], [60000 - left])
        weight += torch.randn_like(weight) * 1e-5
    assert int(cuts.missing) == 0 and int(cuts.found) == 1


def test_an_interrupted_search_leaves_the_next_one_right(monkeypatch):
    weight = torch.randn(3000, device=DEVICE)
    cuts = Cuts([weight])

    def interrupted(kernel, *arguments, **constants):
        if kernel is selection.choose_digit:
            raise KeyboardInterrupt
        launch(kernel, *arguments, **constants)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pdp.kernels.gpu.cuts.launch", interrupted)
        cuts.find([weight], [1000])
    check_cuts(cuts, [weight], [2000])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_cuts_of_lower_types(kind):
    weights = [torch.randn(700, device=DEVICE).to(kind), torch.randn(33, device=DEVICE).to(kind)]
    cuts = Cuts(weights)
    for _ in range(3):
        check_cuts(cuts, weights, [600, 5])


@pytest.mark.parametrize(
    ("weight", "cut", "temperature"),
    [
        (torch.randn(3), 0.04, 1e-4),
        (torch.randn(64, 37) * 0.05, 0.06, torch.tensor(1e-3)),
        ((torch.randn(20, 30, 3, 3) * 0.05).contiguous(**LAST), 0.06, 1e-4),
        (torch.zeros(5), 0.06, 1e-4),
        (torch.randn(50) * 0.05, math.inf, 1e-4),
        (torch.randn(50) * 0.05, -math.inf, 1e-4),
    ],
)
def test_mask_and_gradient_follow_the_formula(weight, cut, temperature):
    mine = weight.clone().to(DEVICE).requires_grad_()
    tau = temperature.to(DEVICE) if isinstance(temperature, torch.Tensor) else temperature
    effective = device_prune(mine, torch.tensor(cut, device=DEVICE), tau, torch.float32)
    upstream = torch.randn(weight.shape).to(DEVICE)
    effective.backward(upstream)
    assert alike(effective, mine) and alike(mine.grad, mine)
    if math.isinf(cut):
        assert torch.equal(effective, mine if cut < 0 else torch.zeros_like(mine))
        torch.testing.assert_close(mine.grad, upstream if cut < 0 else torch.zeros_like(mine), rtol=0, atol=1e-5)
        return
    mask, slope = reference(weight.numpy(), cut, float(temperature))
    square = np.maximum(weight.numpy().astype(np.float64) ** 2, cut**2)
    room = 1e-6 * square / float(temperature) + 1e-6
    assert (np.abs(effective.detach().cpu().numpy() - mask * weight.numpy()) <= room).all()
    found = mine.grad.cpu().numpy() / upstream.cpu().numpy()
    assert (np.abs(found - slope) <= room * (1 + 4 * square / float(temperature)) * 2).all()


def test_a_lower_type_is_the_float32_result_rounded_once_and_its_gradient_is_read_as_it_is():
    weight, upstream = torch.randn(37, 50, device=DEVICE) * 0.05, torch.randn(50, 37, device=DEVICE).to(LOWER).T
    cut = torch.tensor(0.06, device=DEVICE)
    full, lower = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    exact = device_prune(full, cut, 1e-3, torch.float32)
    rounded = device_prune(lower, cut, 1e-3, LOWER)
    assert torch.equal(rounded, exact.to(LOWER))
    exact.backward(upstream.float())
    rounded.backward(upstream)
    assert torch.equal(full.grad, lower.grad)


class Net(torch.nn.Module):
    """A layer of each kind whose groups lie differently in memory."""

    def __init__(self):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3)
        self.conv = torch.nn.Conv2d(8, 12, 3)
        self.linear = torch.nn.Linear(12, 16)
        self.turned = Conv1D(6, 16)

    def forward(self, image):
        return self.turned(self.linear(torch.relu(self.conv(torch.relu(self.stem(image)))).mean((2, 3))))


@pytest.mark.parametrize("pattern", ["random", "2:4", "1:3"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_training_goes_as_with_the_readable_mask(pattern, order, monkeypatch):
    """Every step's outputs, gradients and cuts, through the dense epoch, the ramp and the full share."""

    def trained(kernels):
        torch.manual_seed(1)
        if not kernels:
            for place in ("kernels.gpu", "kernels.cpu", "patterns.nm"):
                monkeypatch.setattr(f"pdp.{place}.usable", lambda *weights: False)
        model = Net().to(memory_format=order).to(DEVICE)
        if pattern == "1:3":
            model.conv, model.linear = torch.nn.Conv2d(8, 6, 3), torch.nn.Linear(6, 9)
            model.turned = torch.nn.Linear(9, 6)
            model.to(DEVICE).to(memory_format=order)
        pruner = Pruner(
            model, pattern=pattern, sparsity=0.7 if pattern == "random" else None, epochs=4,
            schedule={"warmup": "1ep", "ramp": "2ep"}, temperature=1e-3,
        )  # fmt: skip
        assert all(usable(layer.weight) for layer in pruner.layers)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        data = torch.Generator().manual_seed(2)
        seen = []
        for epoch in range(4):
            pruner.start_epoch(epoch)
            for _ in range(2):
                image = torch.randn(4, 3, 8, 8, generator=data).to(DEVICE)
                output = model(image)
                output.square().mean().backward()
                seen += [output.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
                optimizer.step()
                pruner.step()
                optimizer.zero_grad()
            seen += [layer.state["cut"].clone() for layer in pruner.layers if layer.active]
        pruner.finalize()
        return [*seen, *(parameter.detach() for parameter in model.parameters())]

    mine = trained(kernels=True)
    readable = trained(kernels=False)
    assert len(mine) == len(readable)
    for one, other in zip(mine, readable, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8", "1:3"])
@pytest.mark.parametrize("kind", ["conv", "channels_last", "conv1d"])
@pytest.mark.parametrize("values", ["distinct", "few"])
def test_group_cuts_equal_the_readable_ones_at_every_share(pattern, kind, values, monkeypatch):
    """With few different magnitudes ties decide nearly everywhere."""
    from transformers.pytorch_utils import Conv1D

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(24, 6, (2, 3)), Conv1D(10, 48))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) if values == "distinct" else torch.randint(-2, 3, parameter.shape)
            )
    model = model.to(DEVICE).to(
        memory_format=torch.channels_last if kind == "channels_last" else torch.contiguous_format
    )
    pruner = Pruner(model, pattern=pattern, epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"})
    (layer,) = [one for one in pruner.layers if (one.kind == "Conv1D") == (kind == "conv1d")]
    assert usable(layer.weight)
    groups = layer.units // pruner.pattern.options.m
    for share in (0, 0.01, 0.3, 0.31, 0.8, 1, 0.5):
        layer.pruned = int(share * groups * pruner.pattern._free)
        if layer.pruned:
            (mine,) = pruner.pattern.cuts([layer])
            readable = pruner.pattern._cut(layer)
            assert mine.shape == readable.shape and torch.equal(mine, readable)


def test_a_new_memory_order_is_seen_by_the_next_cuts():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(24, 6, (2, 3))).to(DEVICE)
    with torch.no_grad():
        model[1].weight.copy_(torch.randint(-2, 3, model[1].weight.shape))
    pruner = Pruner(model, pattern="2:4", epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"})
    (layer,) = pruner.layers
    for share in (0.3, 0.31, 0.6):
        layer.pruned = int(share * layer.units // 2)
        for order in (torch.contiguous_format, torch.channels_last):
            model.to(memory_format=order)
            (mine,) = pruner.pattern.cuts([layer])
            assert torch.equal(mine, pruner.pattern._cut(layer))


def test_under_autocast_the_layer_is_given_the_type_it_computes_in():
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64).to(DEVICE)
    pruner = Pruner(model, sparsity=0.5, epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"})
    pruner.start_epoch(0)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight))
    values = torch.randn(8, 64, device=DEVICE)
    with torch.autocast(DEVICE, LOWER):
        output = model(values)
    assert seen[0].dtype == LOWER
    layer = pruner.layers[0]
    expected = soft_prune(layer.weight.detach(), layer.state["cut"], 1e-4)
    torch.testing.assert_close(seen[0].float(), expected, rtol=2**-8, atol=6e-8)
    output.float().square().sum().backward()
    assert model.weight.grad.dtype == torch.float32 and model.weight.grad.abs().sum() > 0


class Several(torch.nn.Module):
    """Layers of sizes that do not fill a launch, one that is not trained, one used twice, one that is skipped."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        sizes = [8, 40, 12, 8, 36, 4, 8]
        self.parts = torch.nn.ModuleList(torch.nn.Linear(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True))
        self.again = torch.nn.Linear(8, 40)
        self.again.weight = self.parts[0].weight
        self.unused = torch.nn.Linear(16, 4)
        self.last = torch.nn.Linear(40, 4)
        self.parts[2].weight.requires_grad_(False)

    def forward(self, values):
        for part in self.parts:
            values = torch.tanh(part(values))
        return self.last(self.again(values))


def trained_several(pattern, mode, kind):
    """Outputs, gradients and cuts of some steps; the first layers lie elsewhere from the second on."""
    torch.manual_seed(1)
    model = Several().to(DEVICE)
    pruner = Pruner(
        model, pattern=pattern, sparsity=0.6 if pattern == "random" else None, epochs=1,
        schedule={"warmup": "0ep", "ramp": "1ep"}, temperature_mode=mode, kappa=0.05,
        **({"temperature": 1e-2} if mode == "absolute" else {}),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data, seen = torch.Generator().manual_seed(2), []
    pruner.start_epoch(0)
    for _ in range(2):
        values = torch.randn(4, 8, generator=data).to(DEVICE)
        with torch.autocast(DEVICE, kind, enabled=kind is not None):
            output = model(values)
        output.float().square().mean().backward()
        seen += [output.detach(), *(one.grad.clone() for one in model.parameters() if one.grad is not None)]
        assert model.unused.weight.grad is None and model.parts[2].weight.grad is None
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        for part in model.parts[:2]:
            part.weight.data = part.weight.data.clone()
        seen += [layer.state["cut"].clone() for layer in pruner.layers]
    return seen


@pytest.mark.parametrize(
    ("pattern", "mode", "kind"),
    [
        ("random", "absolute", None),
        ("2:4", "absolute", LOWER),
        ("random", "relative", LOWER),
        ("1:4", "relative", None),
    ],
)
def test_layers_masked_together_are_those_masked_one_by_one(pattern, mode, kind, monkeypatch):
    launched = []

    def counted(kernel, *arguments, **how):
        launched.append(kernel)
        launch(kernel, *arguments, **how)

    monkeypatch.setattr("pdp.kernels.gpu.joint.launch", counted)
    monkeypatch.setattr("pdp.patterns.joint_forward.SLOTS", 4)
    together = trained_several(pattern, mode, kind)
    writes = [one.__name__ for one in launched]
    assert writes.count("write_slopes_of_many") == writes.count("write_effective_of_many") >= 4
    launched.clear()
    monkeypatch.setattr(Pattern, "prepared", lambda *given: None)
    alone = trained_several(pattern, mode, kind)
    assert not launched and len(together) == len(alone)
    near = {"rtol": 2e-4, "atol": 2e-6} if kind is None else {"rtol": 1e-2, "atol": 1e-3}  # products round as they lie
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, **near)


@settings(max_examples=12)
@given(
    shapes=st.lists(
        st.sampled_from([(5, 7), (64, 24), (1, 8), (3, 4, 3, 3), (1100,), (16, 8)]), min_size=1, max_size=16
    ),
    held=st.booleans(),
    lower=st.booleans(),
    missing=st.integers(0, 15),
    seed=st.integers(0, 99),
)
def test_a_bundle_is_what_its_weights_are_one_by_one_bit_for_bit(shapes, held, lower, missing, seed):
    draw = torch.Generator().manual_seed(seed)
    dtype = LOWER if lower else torch.float32
    kinds = {"memory_format": torch.channels_last} if seed % 2 else {}
    made = [torch.randn(shape, generator=draw) * 0.1 for shape in shapes]
    made = [(one.contiguous(**kinds) if one.dim() == 4 else one).to(DEVICE) for one in made]
    pairs = [(one.clone().requires_grad_(), one.clone().requires_grad_()) for one in made]
    cuts = [torch.tensor(0.02 * number, device=DEVICE) for number in range(len(made))]
    taus = [torch.tensor(1e-3 * (1 + number), device=DEVICE) if held else None for number in range(len(made))]
    parts = [Part(pair[0], cut, tau, 1) for pair, cut, tau in zip(pairs, cuts, taus, strict=True)]
    together = Joint(parts, 1).effective(parts, 1e-3, dtype)
    alone = [
        device_prune(pair[1], cut, 1e-3 if tau is None else tau, dtype)
        for pair, cut, tau in zip(pairs, cuts, taus, strict=True)
    ]
    upstream = [torch.randn(one.shape, generator=draw).to(DEVICE, dtype) for one in made]
    given = [(one, other, up) for one, other, up in zip(together, alone, upstream, strict=True)]
    given = [one for number, one in enumerate(given) if number != missing] or given  # one may have no gradient
    torch.autograd.backward([one for one, _, _ in given], [up for _, _, up in given])
    torch.autograd.backward([one for _, one, _ in given], [up for _, _, up in given])
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
    for one, other in pairs:
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_a_weight_changed_before_backward_is_told_of():
    model = Several().to(DEVICE)
    pruner = Pruner(model, sparsity=0.5, epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"})
    pruner.start_epoch(0)
    output = model(torch.randn(2, 8, device=DEVICE)).sum()
    with torch.no_grad():
        model.parts[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_may_be_computed_again(reentrant):
    from torch.utils.checkpoint import checkpoint

    def gradients(again):
        torch.manual_seed(0)
        first, rest = torch.nn.Linear(6, 8), torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
        model = torch.nn.Module()
        model.first, model.rest = first, rest
        run = (lambda one: checkpoint(rest, one, use_reentrant=reentrant)) if again else rest
        model.forward = lambda values: run(first(values))
        model.to(DEVICE)
        pruner = Pruner(model, sparsity=0.5, epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"}, temperature=1e-2)
        pruner.start_epoch(0)
        model(torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).to(DEVICE)).square().sum().backward()
        return [one.grad for one in model.parameters()]

    for one, other in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(one, other)
