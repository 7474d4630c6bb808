"""N:M's compiled kernels on the CPU against the readable definitions and a sort."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.kernels.cpu.groups import full_cuts, prune_groups, spread_cuts
from pdp.masks.soft import soft_prune

pytestmark = pytest.mark.skipif(host_kernels.found() is None, reason="Numba is not installed")


def in_groups(values, along, members):
    return values.movedim(along, -1).unflatten(-1, (-1, members))


def sorted_cuts(weight, along, members, free):
    """Midway between the free-th and the next magnitude of every group, by a sort in float32."""
    ordered = in_groups(weight, along, members).abs().sort(dim=-1).values
    below, above = ordered[..., free - 1], ordered[..., free]
    return below + (above - below) * 0.5


CASES = {
    "linear": ((24, 64), 1, False),
    "linear of many": ((700, 1024), 1, False),
    "linear with the inputs first": ((64, 30), 0, False),
    "convolution": ((10, 32, 3, 3), 1, False),
    "convolution, channels last": ((10, 32, 3, 3), 1, True),
    "one by one, channels last": ((16, 64, 1, 1), 1, True),
    "in one dimension": ((6, 32, 5), 1, False),
    "in three dimensions": ((4, 16, 2, 3, 3), 1, False),
    "a large window": ((2, 8, 40, 41), 1, False),
}


def made(case, seed=0):
    shape, along, last = CASES[case]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    return (weight.contiguous(memory_format=torch.channels_last) if last else weight), along


KINDS = [(4, 2), (4, 1), (4, 3), (2, 1), (8, 4), (8, 7), (16, 12)]
DIVISIBLE = [(case, *kind) for case, (shape, along, _) in CASES.items() for kind in KINDS if not shape[along] % kind[0]]


@pytest.mark.parametrize("case, members, free", DIVISIBLE)
def test_cuts_are_those_of_a_sort_bit_for_bit(case, members, free):
    weight, along = made(case)
    cuts = full_cuts(weight, along, members, free)
    assert torch.equal(cuts, sorted_cuts(weight, along, members, free))
    inner = weight.stride(along)
    spread = in_groups(
        spread_cuts(memory_cuts(cuts, along, weight), weight.shape, weight.stride(), members, inner), along, members
    )
    assert torch.equal(spread, cuts[..., None].expand_as(spread))


def memory_cuts(cuts, along, weight):
    form = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
    moved = cuts.movedim(-1, along)
    held = moved.contiguous(memory_format=form)
    assert held.data_ptr() == moved.data_ptr()  # found in that order already
    return held


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1e-45, -1e-3, 0.5, -0.5, 1.0, 3e38, math.inf, -math.inf, math.nan]), min_size=48,
             max_size=48),
    st.sampled_from([(4, 2), (4, 1), (4, 3), (8, 3), (6, 5), (12, 1)]),
)  # fmt: skip
def test_ties_zeros_and_what_is_no_number(values, kind):
    members, free = kind
    weight = torch.tensor(values).reshape(2, 24)
    cuts, right = full_cuts(weight, 1, members, free), sorted_cuts(weight, 1, members, free)
    none = in_groups(weight, 1, members).isnan().any(-1)
    assert cuts[none].isnan().all()
    torch.testing.assert_close(cuts[~none], right[~none], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 1e-24])
@pytest.mark.parametrize("threads", [1, 2])
def test_mask_gradient_and_second_derivative_equal_the_definition(case, temperature, threads):
    weight, along = made(case)
    upstream = torch.randn_like(weight)
    cuts = memory_cuts(full_cuts(weight, along, 4, 2), along, weight)
    flat = cuts.as_strided((cuts.numel(),), (1,))
    flat[0], flat[1], flat[2] = -math.inf, math.inf, 0.0
    inner, found = weight.stride(along), []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kernels in (True, False):
            mine = weight.clone().requires_grad_()
            if kernels:
                effective = prune_groups(mine, cuts, temperature, 4, inner)
            else:
                effective = soft_prune(mine, spread_cuts(cuts, mine.shape, mine.stride(), 4, inner), temperature)
            assert effective.stride() == weight.stride()
            (slope,) = torch.autograd.grad(effective, mine, upstream, retain_graph=True)
            (graph,) = torch.autograd.grad((effective * upstream).sum(), mine, create_graph=True)
            (second,) = torch.autograd.grad(graph.sum(), mine)
            found.append((effective.detach(), slope, second))
    finally:
        torch.set_num_threads(before)
    near = (
        weight.abs() - spread_cuts(cuts, weight.shape, weight.stride(), 4, inner)
    ).abs() < 1e-6  # there the last bit decides
    keep = ~near if temperature < 1e-20 else torch.ones_like(near)
    compared = [found[0][:2], found[1][:2]] if temperature < 1e-20 else found  # it has no second derivative
    for one, right in zip(*compared, strict=True):
        torch.testing.assert_close(one[keep], right[keep], rtol=2e-5, atol=2e-6 * max(1.0, float(right.abs().max())))


def test_a_weight_that_was_given_other_data_since_has_the_same_gradient():
    weight, along = made("convolution, channels last")
    found = []
    for change in (lambda one: one, lambda one: one.double(), lambda one: one.contiguous()):
        mine = weight.clone().requires_grad_()
        cuts = memory_cuts(full_cuts(weight, along, 4, 2), along, weight)
        loss = prune_groups(mine, cuts, 1e-3, 4, mine.stride(along)).square().sum()
        mine.data = change(mine.data)
        loss.backward()
        found.append(mine.grad.float())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
@pytest.mark.parametrize("last", [False, True])
def test_a_training_with_them_is_the_training_without(pattern, last, monkeypatch):
    inputs = torch.randn(8, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    found = []
    for kernels in ("all", "of single weights", "none"):
        if kernels == "of single weights":  # those of groups could not be compiled
            monkeypatch.setattr(host_kernels, "found_groups", lambda: None)
        elif kernels == "none":
            monkeypatch.setattr(host_kernels, "usable", lambda *weights: False)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 5))
        model = model.to(memory_format=torch.channels_last) if last else model
        pruner = Pruner(model, pattern=pattern, epochs=4, schedule={"warmup": "0ep", "ramp": "2ep"}, temperature=1e-3)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for epoch in range(4):
            pruner.start_epoch(epoch)
            for _ in range(3):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
                pruner.step()
        pruner.finalize()
        found.append([one.detach() for one in model.parameters()])
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert torch.equal(one == 0, other == 0)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def two(**values):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).to(**values)
    schedule = {"warmup": "0ep", "ramp": "0ep"}
    pruner = Pruner(model, pattern="2:4", epochs=4, schedule=schedule, temperature=1e-3)
    pruner.start_epoch(0)
    return model, pruner


def plainly(model, inputs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_kernels, "usable", lambda *weights: False)
        return model(inputs)


def test_cuts_of_another_type_are_not_read_as_theirs():
    model, _ = two(dtype=torch.float64)
    model.float()
    other, pruner = two()
    pruner.load_state_dict(two(dtype=torch.float64)[1].state_dict())
    inputs = torch.randn(3, 16)
    for one in (model, other):
        torch.testing.assert_close(one(inputs), plainly(one, inputs))


def test_a_weight_of_a_single_group_has_second_derivatives():
    weight, cuts = torch.tensor([[0.5, -0.1, 0.3, 0.2]], requires_grad=True), torch.tensor([[0.25]])
    found = []
    for effective in (prune_groups(weight, cuts, 0.1, 4, 1), soft_prune(weight, cuts.expand(1, 4), 0.1)):
        (slope,) = torch.autograd.grad(effective.square().sum(), weight, create_graph=True)
        found.append(torch.autograd.grad(slope.sum(), weight)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("pattern", ["2:4", "random"])
def test_gradients_without_memory_or_with_a_sign_to_come_are_read_as_what_they_are(pattern):
    weight, signed = torch.randn(8, 16), torch._neg_view(torch.randn(8, 16))  # as of conj().imag, without gaps
    for use, right in (
        (lambda one: torch.sgn(one), torch.zeros_like(weight)),
        (lambda one: one.register_hook(lambda slope: signed) and one, signed.clone()),
    ):
        mine = weight.clone().requires_grad_()
        if pattern == "2:4":
            effective = prune_groups(mine, torch.full((8, 4), -math.inf), 1e-3, 4, 1)
        else:
            effective = host_kernels.found().prune(mine, torch.tensor(-math.inf), 1e-3)
        use(effective).sum().backward()
        torch.testing.assert_close(mine.grad, right)


def test_another_default_device_and_a_trace_change_nothing():
    model, pruner = two()
    inputs = torch.randn(3, 16)
    right = model(inputs)
    with torch.device("meta"):
        pruner.step()
        pruner.start_epoch(1)
    torch.testing.assert_close(model(inputs), right)
    traced = torch.jit.trace(model, (inputs,), check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(2 * inputs), model(2 * inputs))
