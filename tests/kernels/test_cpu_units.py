"""The channel pattern's compiled kernels on the CPU against a formula in float64 and the readable operations."""

import itertools

import pytest
import torch
from channel_models import Residual
from hypothesis import given, settings
from hypothesis import strategies as st

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.kernels.cpu import units
from pdp.masks.sums import row_sums
from pdp.masks.units import mask_units, steepness

pytestmark = pytest.mark.skipif(host_kernels.found() is None, reason="Numba is not installed")

LAST = torch.channels_last
TAU = 0.7


def rows_of(mask, tensor):
    return mask.reshape(-1, *[1] * (tensor.dim() - 1))


def tensors_of(count, shapes, order=torch.contiguous_format):
    generator = torch.Generator().manual_seed(7)
    made = [torch.randn((count, *shape), generator=generator) for shape in shapes]
    return [one.contiguous(memory_format=order) if one.dim() == 4 else one for one in made]


def formula(tensors, weighs):
    """Mask and effective tensors for autograd to differentiate, in the tensors' type; and the factor in s^2."""
    total = sum(one.square().flatten(1).sum(1) for one, own in zip(tensors, weighs, strict=True) if own)
    scale = 0.2 / float(total.detach().mean())
    mask = torch.sigmoid((scale * total - 0.16) / TAU)
    return mask, [one * rows_of(mask, one) for one in tensors], scale


def check(tensors, weighs, wanted, used, turned=False):
    """Effective tensors at the places `wanted`, and gradients where those at `used` get some, against the formula."""
    exact = [one.detach().double().requires_grad_() for one in tensors]
    mask, expected, scale = formula(exact, weighs)
    mask = mask.detach().float()
    steep = steepness(mask, torch.tensor(2 * scale / TAU))
    stored = [one.detach().requires_grad_() for one in tensors]
    dtypes = [torch.float32 if place in wanted else None for place in range(len(tensors))]
    kernels = host_kernels.unit_kernels(mask, stored, [None] * len(stored), dtypes)
    assert kernels is units
    effective = mask_units(mask, steep, stored, [None] * len(stored), weighs, dtypes, kernels)
    made = dict(zip(wanted, effective, strict=True))
    for place, one in made.items():
        assert torch.equal(one, stored[place].detach() * rows_of(mask, one))
        assert one.stride() == stored[place].stride()
    generator = torch.Generator().manual_seed(9)
    upstream = [torch.randn(tensors[place].shape, generator=generator) for place in used]
    if turned:
        upstream = [one.transpose(0, -1).contiguous().transpose(0, -1) for one in upstream]
    found = torch.autograd.grad([made[place] for place in used], stored, upstream, allow_unused=True)
    theirs = torch.autograd.grad(
        [expected[place] for place in used], exact, [one.double() for one in upstream], allow_unused=True
    )
    for mine, other, one in zip(found, theirs, stored, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == torch.float32 and mine.stride() == one.stride()
            assert torch.allclose(mine.double(), other, rtol=1e-5, atol=2e-6 * float(other.abs().max()))


@settings(max_examples=30)
@given(length=st.integers(1, 3000), count=st.integers(1, 70), vectors=st.integers(0, 3))
def test_rows_of_any_length_follow_the_formula(length, count, vectors):
    places = range(1 + vectors)
    check(tensors_of(count, [(length,), *[()] * vectors]), [True, *[False] * vectors], places, places)


@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_several_weights_share_a_mask_with_vectors(order, turned, threads):
    shapes = [(50, 3, 3), (), (70, 1, 1), (), (1600,), (), ()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        weighs = [len(shape) > 0 for shape in shapes]
        check(tensors_of(240, shapes, order), weighs, range(len(shapes)), range(len(shapes)), turned)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("used", [one for size in (1, 2) for one in itertools.combinations(range(4), size)], ids=str)
@pytest.mark.parametrize("alone", [False, True])
def test_what_weighs_has_a_gradient_without_one_of_its_own(used, alone):
    check(tensors_of(9, [(4, 2, 2), (6,), (), ()]), [True, True, False, False], used if alone else range(4), used)


@settings(max_examples=30)
@given(length=st.integers(1, 2000), count=st.integers(1, 50), last=st.booleans())
def test_sums_of_squares_are_those_of_the_definition_and_equal_rows_have_equal_ones(length, count, last):
    (first, second) = tensors_of(count, [(length, 2, 1), (3,)], LAST if last else torch.contiguous_format)
    first[count // 2] = first[0]
    found = units.row_squares([first, second])
    expected = torch.cat([row_sums(one, torch.Tensor.square) for one in (first, second)])
    assert torch.allclose(found, expected, rtol=1e-13, atol=0) and found[count // 2] == found[0]


def test_what_is_no_number_stays_in_its_row():
    tensor = torch.ones(4, 37)
    tensor[1, 5], tensor[2, 36] = torch.nan, torch.inf
    mask = torch.full((4,), 0.5)
    (made,) = units.masked(mask, [tensor], [torch.float32])
    found = units.gradients(mask, mask, [tensor], [True], {0: torch.ones_like(made)})[0]
    assert torch.equal(made.isfinite(), tensor.isfinite())
    assert found[1].isnan().all() and not found[2].isfinite().any() and found[[0, 3]].isfinite().all()
    assert torch.equal(units.row_squares([tensor]).isfinite(), torch.tensor([True, False, False, True]))


def test_other_types_orders_and_units_are_left_to_the_definitions():
    mask, rows = torch.rand(4), torch.randn(4, 6)
    assert host_kernels.unit_kernels(mask, [rows], [None], [torch.float32]) is units
    for tensor in (rows.double(), rows.bfloat16(), torch.randn(6, 4).t(), torch.randn(4, 9)[:, :6]):
        assert host_kernels.unit_kernels(mask, [tensor], [None], [torch.float32]) is None
    assert host_kernels.unit_kernels(mask, [rows], [torch.arange(4)], [torch.float32]) is None
    assert host_kernels.unit_kernels(mask, [rows], [None], [torch.bfloat16]) is None
    assert host_kernels.unit_kernels(mask.double(), [rows], [None], [torch.float32]) is None


@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.double,
        lambda one: one.contiguous(memory_format=LAST),
        lambda one: one.transpose(0, 1).contiguous().transpose(0, 1),
    ],
)
def test_a_weight_that_was_given_other_data_since_has_the_same_gradient(change):
    tensor, gradient = torch.randn(6, 5, 3, 3), torch.randn(6, 5, 3, 3)
    mask = torch.rand(6)
    found = []
    for changed in (False, True):
        weight = torch.nn.Parameter(tensor.clone())
        dtypes = [torch.float32]
        kernels = host_kernels.unit_kernels(mask, [weight], [None], dtypes)
        (made,) = mask_units(mask, mask, [weight], [None], [True], dtypes, kernels)
        if changed:
            weight.data = change(weight.data)
        made.backward(gradient)
        found.append(weight.grad.float())
    assert torch.allclose(*found, rtol=1e-6, atol=1e-7)


def test_second_derivatives_are_those_of_the_readable_operations(monkeypatch):
    found = []
    for kernels in (True, False):
        weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        mask = torch.full((5,), 0.4)
        used = host_kernels.unit_kernels(mask, [weight], [None], [torch.float32]) if kernels else None
        (made,) = mask_units(mask, steepness(mask, torch.tensor(0.3)), [weight], [None], [True], [torch.float32], used)
        (first,) = torch.autograd.grad(made.square().sum(), weight, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), weight)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("last", [False, True])
def test_a_training_with_them_is_the_training_without(last, monkeypatch):
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for kernels in ("all", "of single weights", "none"):
        if kernels == "of single weights":  # those of units could not be compiled
            monkeypatch.setattr(host_kernels, "found_units", lambda: None)
        elif kernels == "none":
            monkeypatch.setattr(host_kernels, "usable", lambda *weights: False)
        torch.manual_seed(0)
        model = Residual()
        model = model.to(memory_format=LAST) if last else model
        pruner = Pruner(
            model, pattern="channel", sparsity=0.5, epochs=4, schedule={"warmup": "0ep", "ramp": "2ep"},
            example_input=images[:1],
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for epoch in range(4):
            pruner.start_epoch(epoch)
            for _ in range(3):
                optimizer.zero_grad()
                model(images).square().mean().backward()
                optimizer.step()
                pruner.step()
        pruner.finalize()
        found.append([one.detach() for one in model.parameters()])
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert torch.equal(one == 0, other == 0)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
