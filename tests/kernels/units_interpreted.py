"""Tests of the GPU's channel kernels, run by Triton's interpreter on machines without a GPU (see test_gpu.py)."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdp import Pruner
from pdp.kernels.gpu import unit_kernels
from pdp.kernels.gpu.masks import alike
from pdp.kernels.gpu.units import UnitSquares
from pdp.masks.units import mask_units, steepness

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts bfloat16 off instead of rounding.
LOWER = torch.bfloat16 if torch.cuda.is_available() else torch.float16
LAST = torch.channels_last
TAU = 0.7


class Residual(nn.Module):
    """A stem, which stays, a sum of two branches with a bias in one, a depthwise convolution, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.two, self.norm2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.norm3 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.last, self.norm4 = nn.Conv2d(12, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm1(self.one(x)) + self.norm2(self.two(x))).relu()
        x = self.norm3(self.deep(x)).relu()
        return self.head(self.norm4(self.last(x)).relu().mean((2, 3)))


def kernels(mask, tensors):
    return unit_kernels(mask, tensors, [None] * len(tensors))


def over_rows(mask, tensor):
    return mask.reshape(-1, *[1] * (tensor.dim() - 1))


def formula(tensors, weighs):
    """Mask and effective tensors in float64, for autograd to differentiate; and the factor in s^2."""
    total = sum(one.square().flatten(1).sum(1) for one, own in zip(tensors, weighs, strict=True) if own)
    scale = 0.2 / float(total.detach().mean())
    mask = torch.sigmoid((scale * total - 0.16) / TAU)
    return mask, [one * over_rows(mask, one) for one in tensors], scale


def check(tensors, weighs, dtypes, upstream, tolerance=2e-6):
    """Effective tensors, and the gradients that `upstream` gives by place, against autograd in float64."""
    leaves = [one.detach().double().requires_grad_() for one in tensors]
    exact, expected, scale = formula(leaves, weighs)
    mask = exact.detach().float()
    steep = steepness(mask, torch.tensor(2 * scale / TAU, device=DEVICE))
    stored = [one.detach().requires_grad_() for one in tensors]
    effective = mask_units(mask, steep, stored, [None] * len(stored), weighs, dtypes, kernels(mask, stored))
    assert effective[0].grad_fn.kernels
    wanted = [place for place, dtype in enumerate(dtypes) if dtype is not None]
    made = dict(zip(wanted, effective, strict=True))
    for place, one in made.items():
        plain = stored[place].detach().float() * over_rows(mask, one)
        assert one.dtype == dtypes[place] and torch.equal(one, plain.to(one.dtype))
        assert one.stride() == stored[place].stride()
        assert torch.allclose(plain.double(), expected[place], rtol=1e-6, atol=1e-7)
    found = torch.autograd.grad([made[one] for one in upstream], stored, list(upstream.values()), allow_unused=True)
    theirs = torch.autograd.grad(
        [expected[one] for one in upstream], leaves, [one.double() for one in upstream.values()], allow_unused=True
    )
    for mine, other, one in zip(found, theirs, stored, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert mine.dtype == one.dtype and mine.stride() == one.stride()
            room = tolerance * float(other.abs().max())
            assert torch.allclose(mine.double(), other, rtol=tolerance, atol=room)


def tensors_of(units, shapes, dtype=torch.float32, order=torch.contiguous_format):
    generator = torch.Generator().manual_seed(7)
    made = [torch.randn((units, *shape), generator=generator).to(dtype) for shape in shapes]
    return [
        one.contiguous(memory_format=order if one.dim() == 4 else torch.contiguous_format).to(DEVICE) for one in made
    ]


def randoms(tensors, places, dtypes, turned=False):
    """Upstream gradients; turned ones lie in another order in memory than their tensors do."""
    generator = torch.Generator().manual_seed(9)
    made = {place: torch.randn(tensors[place].shape, generator=generator).to(dtypes[place]) for place in places}
    if turned:
        made = {place: one.transpose(0, -1).contiguous().transpose(0, -1) for place, one in made.items()}
    else:
        made = {place: torch.empty_like(tensors[place], dtype=one.dtype).copy_(one) for place, one in made.items()}
    return {place: one.to(DEVICE) for place, one in made.items()}


@settings(max_examples=20)
@given(length=st.integers(1, 5000), units=st.integers(1, 70), lower=st.booleans(), vectors=st.integers(0, 3))
def test_rows_of_any_length_follow_the_formula(length, units, lower, vectors):
    tensors = tensors_of(units, [(length,), *[()] * vectors])
    dtypes = [LOWER if lower else torch.float32, *[torch.float32] * vectors]
    places = range(1 + vectors)
    check(tensors, [True, *[False] * vectors], dtypes, randoms(tensors, places, dtypes), 1e-5)


@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, LOWER])
def test_several_weights_share_a_mask_with_vectors_more_than_go_with_them(order, turned, dtype):
    shapes = [(5, 3, 3), (), (7, 1, 1), (), (16,), *[()] * 8]
    tensors = tensors_of(24, shapes, order=order)
    weighs = [len(shape) > 0 for shape in shapes]
    dtypes = [dtype if own else torch.float32 for own in weighs]
    check(tensors, weighs, dtypes, randoms(tensors, range(len(shapes)), dtypes, turned))


@pytest.mark.parametrize("given", [one for size in (1, 2) for one in itertools.combinations(range(4), size)], ids=str)
@pytest.mark.parametrize("alone", [False, True])
def test_what_weighs_has_a_gradient_without_one_of_its_own(given, alone):
    """Places that nothing uses, or that no type is asked for: a node of a single place has those."""
    tensors = tensors_of(9, [(4, 2, 2), (6,), (), ()])
    dtypes = [torch.float32 if place in given or not alone else None for place in range(4)]
    check(tensors, [True, True, False, False], dtypes, randoms(tensors, given, dtypes))


def test_vectors_alone_and_what_does_not_weigh():
    tensors = tensors_of(40, [(), (3,), (), (), (), ()])
    weighs, dtypes = [False, True, *[False] * 4], [torch.float32] * 6
    for places in (range(6), (1,), (0, 5)):
        check(tensors, weighs, dtypes, randoms(tensors, places, dtypes))
    bystander = tensors_of(40, [(3,), (5,), ()])
    check(bystander, [True, False, False], dtypes[:3], randoms(bystander, range(3), dtypes))
    vectors = tensors_of(40, [()] * 5)
    mask = torch.rand(40, device=DEVICE)
    stored = [one.requires_grad_() for one in vectors]
    effective = mask_units(mask, mask, stored, [None] * 5, [False] * 5, dtypes[:5], kernels(mask, stored))
    assert all(torch.equal(one, mask * two) for one, two in zip(effective, stored, strict=True))
    found = torch.autograd.grad(effective, stored, [torch.ones_like(mask)] * 5)
    assert all(torch.equal(one, mask) for one in found)


def test_an_expanded_gradient_and_weights_of_a_lower_type():
    (weight,) = tensors_of(6, [(4, 3)])
    check([weight], [True], [torch.float32], {0: torch.ones((), device=DEVICE).expand(6, 4, 3)})
    (lower,) = tensors_of(6, [(4, 3)], LOWER)
    check([lower], [True], [LOWER], randoms([lower], [0], [LOWER]), 2**-7)


def test_a_retained_graph_gives_its_gradient_again_and_a_changed_weight_is_refused():
    tensors = [one.requires_grad_() for one in tensors_of(8, [(4,), (70,), ()])]
    mask = torch.rand(8, device=DEVICE)
    effective = mask_units(
        mask, mask, tensors, [None] * 3, [True, True, False], [torch.float32] * 3, kernels(mask, tensors)
    )
    upstream = [torch.rand_like(one) for one in effective]
    twice = [torch.autograd.grad(effective, tensors, upstream, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*twice, strict=True))
    with torch.no_grad():
        tensors[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(effective, tensors, upstream)


@settings(max_examples=12)
@given(
    rows=st.integers(1, 150), lengths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    kinds=st.lists(st.sampled_from(["columns", "rows", "last", "vector", "weighing vector"]), min_size=1, max_size=4),
    listed=st.booleans(), lower=st.booleans(), without=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_units_that_lie_as_they_like_are_masked_as_by_plain_operations(
    rows, lengths, kinds, listed, lower, without, seed
):
    """Columns of a weight, several slices of a unit, slices of none, vectors over the same units or over others."""
    draw = torch.Generator().manual_seed(seed)
    kinds = [*kinds, "columns"]
    units = torch.randint(0, 6, (rows,), generator=draw).to(DEVICE) if listed else None  # 5 is none
    count = 5 if listed else rows
    tensors, weighs, belong = [], [], []
    for number, kind in enumerate(kinds):
        length = lengths[number % len(lengths)]
        shape = {"last": (rows, 3, 2, 2), "rows": (rows, length), "columns": (length, rows)}.get(kind, (rows,))
        one = torch.randn(shape, generator=draw).to(DEVICE)
        one = one.t() if kind == "columns" else one.contiguous(memory_format=LAST) if kind == "last" else one
        tensors.append(one)
        weighs.append(kind != "vector")
        own = torch.randint(0, 6, (rows,), generator=draw).to(DEVICE)
        belong.append(None if units is None else own if number == 2 else units)
    dtypes = [LOWER if lower and own else torch.float32 for own in weighs]
    mask, steep = torch.rand(count, generator=draw).to(DEVICE), torch.rand(count, generator=draw).to(DEVICE) * 0.01
    given = [place for place in range(len(tensors)) if place != without or len(tensors) == 1]
    upstream = randoms(tensors, given, dtypes, turned=bool(seed % 3 == 0))
    results: list = []
    for readable in (False, True):
        stored = [one.detach().requires_grad_() for one in tensors]
        taken = None if readable else unit_kernels(mask, stored, belong)
        assert readable or taken is not None
        effective = mask_units(mask, steep, stored, belong, weighs, dtypes, taken)
        found = torch.autograd.grad(
            [effective[place] for place in given], stored, [upstream[place] for place in given], allow_unused=True
        )
        results.append((effective, found))
    (mine, slopes), (theirs, expected) = results
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other) and alike(one, other)
    for one, other, stored in zip(slopes, expected, tensors, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            near = {"rtol": 1e-2, "atol": 1e-2} if lower else {"rtol": 1e-4, "atol": 1e-4}
            torch.testing.assert_close(one, other, **near)
            assert alike(one, stored)


@pytest.mark.parametrize("kind", [torch.float32, LOWER])
def test_squares_of_units_in_any_order_and_of_weights_that_move(kind):
    """Rows long and short, several of a unit, and a unit without any."""
    shapes, counts = [(3, 3, 3), (16,), (1,), (5000,), (4, 3, 3)], (30, 30, 7, 3, 30)
    weights = [
        one.to(kind)
        for shape, count in zip(shapes, counts, strict=True)
        for one in tensors_of(count, [shape], order=LAST)
    ]
    units = torch.cat([torch.arange(30), torch.randperm(30), *(torch.randint(0, 30, (one,)) for one in counts[2:])])
    scales = torch.rand(31, dtype=torch.float64, device=DEVICE)
    squares = UnitSquares(weights, units.to(DEVICE), scales)
    for change in (lambda one: one, lambda one: one.mul_(2), lambda one: one.clone() * 3):
        weights = [change(one) for one in weights]
        sums = torch.cat([one.double().square().flatten(1).sum(1) for one in weights])
        expected = torch.zeros(31, dtype=torch.float64, device=DEVICE).index_add(0, units.to(DEVICE), sums) * scales
        # Every sum is float64 before it is rounded: the bits are those that any other processor finds.
        assert torch.equal(squares.find(weights), expected.float())
    aligned = tensors_of(6, [(32,), (16, 3, 3)])
    both = UnitSquares(aligned, torch.arange(6).repeat(2).to(DEVICE), scales[:6])
    expected = sum(one.double().square().flatten(1).sum(1) for one in aligned) * scales[:6]
    assert torch.equal(both.find(aligned), expected.float())
    assert both.aligned and not squares.aligned


@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("announced", [False, True])
def test_training_goes_as_with_the_readable_mask(order, autocast, announced, monkeypatch):
    """Every step's outputs, gradients, cuts and masks; where no forward is announced each place has its own node."""

    def trained(kernels):
        torch.manual_seed(1)
        if not kernels:
            for place in ("kernels.gpu", "patterns.unit_table"):
                monkeypatch.setattr(f"pdp.{place}.usable", lambda *weights: False)
        model = Residual().to(memory_format=order).to(DEVICE)
        pruner = Pruner(
            model, pattern="channel", sparsity=0.5, epochs=3, schedule={"warmup": "0ep", "ramp": "2ep"},
            example_input=torch.zeros(1, 3, 8, 8, device=DEVICE), temperature=1e-2,
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        data = torch.Generator().manual_seed(2)
        seen = []
        # In a lower type a sum's last bit grows within steps to what could be an error.
        for epoch in range(1 if autocast else 3):
            pruner.start_epoch(epoch)
            for _ in range(1 if autocast else 2):
                image = torch.randn(8, 3, 8, 8, generator=data).to(DEVICE).contiguous(memory_format=order)
                label = torch.randint(0, 4, (8,), generator=data).to(DEVICE)
                with torch.autocast(DEVICE, LOWER, enabled=autocast):
                    output = model(image) if announced else model.forward(image)
                nn.functional.cross_entropy(output.float(), label).backward()
                seen += [output.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
                optimizer.step()
                pruner.step()
                optimizer.zero_grad()
                seen += [value.clone() for layer in pruner.layers for value in layer.state.values()]
        tables = pruner.pattern._known_tables.values()
        assert all((one._device_squares is not None) == kernels for one in tables)
        if not autocast:
            pruner.finalize()
        return [*seen, *(parameter.detach() for parameter in model.parameters())]

    mine = trained(kernels=True)
    readable = trained(kernels=False)
    assert len(mine) == len(readable)
    for one, other in zip(mine, readable, strict=True):
        # The gradient of a bias before a norm is rounding and nothing else.
        room = (1e-2 if autocast else 1e-3) * float(other.abs().max()) + 1e-5
        torch.testing.assert_close(one, other, rtol=1e-3, atol=room)
