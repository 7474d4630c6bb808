"""Blocks: masks, cuts and gradients against plain loops in float64; exact counts, ragged ends, layers that stay dense."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import batch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pdp import Pruner
from pdp.errors import Refusal
from pdp.layers import input_axis
from pdp.masks.blocks import Grid, soft_prune_blocks
from pdp.methods.checks import PATTERNS_OF
from pdp.patterns import make_pattern
from pdp.survey import find_layers

NOW = {"warmup": "0ep", "ramp": "1ep"}


def matrix_index(weight_shape, groups, turned, group, row, column):
    """The place of a matrix's entry in the weight."""
    if turned:
        return column, row
    index, rest = [], column
    for size in reversed(weight_shape[1:]):
        index.append(rest % size)
        rest //= size
    return (group * (weight_shape[0] // groups) + row, *reversed(index))


def blocks_by_hand(module, high, wide):
    """The blocks as lists of places in the weight, by plain loops: by group, then down, then across."""
    shape, turned = tuple(module.weight.shape), isinstance(module, Conv1D)
    groups = getattr(module, "groups", 1)
    rows = shape[1] if turned else shape[0] // groups
    columns = math.prod(shape) // (rows * groups)
    found = []
    for group in range(groups):
        for top in range(0, rows, high):
            for left in range(0, columns, wide):
                found.append(
                    [
                        matrix_index(shape, groups, turned, group, row, column)
                        for row in range(top, min(top + high, rows))
                        for column in range(left, min(left + wide, columns))
                    ]
                )
    return found


def rms(weight, block):
    return math.sqrt(sum(float(weight[place]) ** 2 for place in block) / len(block))


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(["linear", "conv", "channels_last", "grouped", "conv1d", "sequence"]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    high, wide = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rows, columns = high + draw(st.integers(0, 7)), wide + draw(st.integers(0, 7))
    if kind == "linear":
        module = nn.Linear(columns, rows)
    elif kind == "conv1d":
        module = Conv1D(rows, columns)
    elif kind == "sequence":
        module = nn.Conv1d(columns, rows, 2)
    elif kind == "grouped":
        module = nn.Conv2d(2 * max(2, columns), 2 * rows, (2, 1), groups=2)
    else:
        module = nn.Conv2d(columns, rows, (1, 2))
        if kind == "channels_last":
            module = module.to(memory_format=torch.channels_last)
    module = module.double()
    with torch.no_grad():
        module.weight.normal_()
        if draw(st.booleans()):
            module.weight.copy_(module.weight.round())  # many equal ones
    return module, high, wide, draw(st.floats(0, 1))


def made(case):
    module, high, wide, share = case
    (layer,) = find_layers(module)
    pattern = make_pattern("block", block=[high, wide])
    taken, _ = pattern.gather(module, [layer], None)
    blocks = blocks_by_hand(module, high, wide)
    if not taken:  # a single block
        assert len(blocks) == 1
        return None
    layer.pruned = math.floor(share * layer.units + 0.5)
    return layer, pattern, blocks


@given(cases())
def test_the_least_blocks_go_as_near_as_whole_ones_come(case):
    found = made(case)
    if found is None:
        return
    layer, pattern, blocks = found
    weight = layer.weight.detach()
    keep = pattern.spread(pattern.keep(layer, pattern.saliency(layer)), layer, layer.members[0], weight)
    assert keep.shape == weight.shape
    kinds = [{bool(keep[place]) for place in block} for block in blocks]
    assert all(len(one) == 1 for one in kinds)  # a block is kept or pruned as one
    values = [rms(weight, block) for block in blocks]
    kept, gone = ([value for value, kind in zip(values, kinds, strict=True) if kind == {one}] for one in (True, False))
    assert not kept or not gone or max(gone) <= min(kept) * (1 + 1e-6)
    # No other number of least blocks comes nearer to the weights that are to go.
    sizes = [len(block) for _, block in sorted(zip(values, blocks, strict=True), key=lambda one: one[0])]
    lost = int((~keep).sum())
    assert lost == pattern.removed(layer, pattern.keep(layer, pattern.saliency(layer)))
    if layer.pruned < layer.units:
        assert lost < layer.units
        equal = len({round(value, 6) for value in values}) < len(values)
        reachable = [sum(sizes[:count]) for count in range(len(sizes))]
        if not equal or len(set(sizes)) == 1:  # among equal ones it depends on which goes first
            nearest = min(abs(one - layer.pruned) for one in reachable)
            assert abs(lost - layer.pruned) == nearest
    else:
        assert lost == layer.units


@given(cases())
def test_the_cut_lies_midway_and_the_effective_weight_is_the_formulas(case):
    found = made(case)
    if found is None:
        return
    layer, pattern, blocks = found
    weight = layer.weight.detach()
    values = sorted(rms(weight, block) for block in blocks)
    keep = pattern.keep(layer, pattern.saliency(layer))
    count = int((~keep).sum())
    (cut,) = pattern.cuts([layer])
    if 0 < count < len(blocks):
        assert float(cut) == pytest.approx((values[count - 1] + values[count]) / 2, rel=1e-5)
    else:
        assert float(cut) == (math.inf if count else -math.inf)
    layer.state["cut"] = cut
    tau, live = 0.3, layer.weight.detach().clone().requires_grad_()
    upstream = torch.randn_like(weight)
    (pattern.soft_weight(layer, layer.members[0], live, tau) * upstream).sum().backward()
    expected, gradient = torch.zeros_like(weight), torch.zeros_like(weight)
    for block in blocks:
        square = sum(float(weight[place]) ** 2 for place in block) / len(block)
        bounded = max(-60.0, min(60.0, (square - float(cut) * abs(float(cut))) / tau))
        mask = 1 / (1 + math.exp(-bounded))
        along = sum(float(upstream[place]) * float(weight[place]) for place in block)
        for place in block:
            w = float(weight[place])
            expected[place] = mask * w
            slope = 2 * w / (len(block) * tau) * mask * (1 - mask) if abs(bounded) < 60 else 0.0
            gradient[place] = mask * float(upstream[place]) + slope * along
    with torch.no_grad():
        made_weight = pattern.soft_weight(layer, layer.members[0], weight, tau)
    assert torch.allclose(made_weight, expected, rtol=1e-6, atol=1e-12)
    assert torch.allclose(live.grad, gradient, rtol=1e-6, atol=1e-9)


def test_derivatives_of_second_order_are_those_of_the_formula():
    grid = Grid((3, 5), 1, 2, 3)
    torch.manual_seed(1)
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    scale = 1 / grid.sizes(weight.device).double()

    def made_of(one):
        return soft_prune_blocks(one, torch.tensor(0.8, dtype=torch.float64), 0.5, grid, scale)

    assert torch.autograd.gradcheck(made_of, weight) and torch.autograd.gradgradcheck(made_of, weight)
    vectors = torch.func.vmap(torch.func.grad(lambda one: made_of(one).square().sum()))(torch.stack([weight, weight]))
    (plain,) = torch.autograd.grad(made_of(weight).square().sum(), weight)
    assert torch.allclose(vectors[1], plain)


def net():
    """A stem, a grouped and a depthwise convolution, a layer of too few rows, and a linear one; ragged ends."""
    return nn.Sequential(
        nn.Conv2d(3, 18, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(18, 12, 3, groups=2),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.Conv2d(12, 3, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


DENSE = {
    "3": "depthwise",
    "4": "its matrix, 3 x 12, is smaller than a block of 4 x 1",
}


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
@pytest.mark.parametrize("block", [[4, 1], [3, 2], [8, 5]])
def test_a_budget_comes_as_near_as_whole_blocks(allocation, block):
    torch.manual_seed(2)
    model = net()
    options = {"pattern_options": {"block": block}, "sparsity": 0.6, "allocation": allocation}
    pruner = Pruner(model, "gmp", "block", epochs=1, schedule=NOW, **options)
    if block == [4, 1]:
        assert pruner.skipped == DENSE
    units = sum(layer.units for layer in pruner.layers)
    assert units == sum(layer.weight.numel() for layer in pruner.layers)
    pruner.start_epoch(0)
    pruner.finalize()
    by_name = dict(model.named_modules())
    zeros = 0
    for layer in pruner.layers:
        module = by_name[layer.name]
        blocks = blocks_by_hand(module, *block)
        kinds = [{bool(module.weight[place]) for place in one} for one in blocks]
        assert all(len(one) == 1 for one in kinds)
        assert layer.pruned == int((module.weight == 0).sum())
        zeros += layer.pruned
    assert abs(zeros - 0.6 * units) <= math.prod(block) / 2


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_layers_of_few_blocks_are_made_up_for_or_refused(allocation):
    model = nn.Sequential(*(nn.Linear(8, 16) for _ in range(20)), nn.Linear(8, 8 * 1000))  # of two blocks, of 1000
    pruner = Pruner(model, "gmp", "8x8", 0.9, epochs=1, schedule=NOW, allocation=allocation)
    pruner.start_epoch(0)
    pruner.step()
    report = pruner.report()
    assert report.pruned.sum() == 0.9 * 1040 * 64 and (report.pruned < report.units).all()
    with pytest.raises(Refusal, match="at most 65216 of 66560 can go"):  # a block stays in each of 21 layers
        Pruner(model, "gmp", "8x8", 0.985, epochs=1, allocation=allocation)


def test_numpys_whole_numbers_are_a_block_and_refusals_are_python():
    assert make_pattern("block", block=list(np.array([4, 2]))).label == "block-4x2"
    for wrong, said in ((torch.tensor([4, 1]), "tensor([4, 1])"), ([True, 1], "[True,1]"), ("4x1", "'4x1'")):
        with pytest.raises(Refusal) as told:
            Pruner(nn.Linear(8, 8), "gmp", "block", 0.5, epochs=1, pattern_options={"block": wrong})
        assert f'{{"block": {said}}}: '.replace(", ", ",") in str(told.value).replace(", ", ",")
    with pytest.raises(Refusal, match='{"saliency": "l1"} has no soft mask'):
        Pruner(nn.Linear(8, 8), "pdp", "4x1", 0.5, epochs=1, pattern_options={"saliency": "l1"})


def test_equal_blocks_are_counted_exactly_through_the_ramp():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.AdaptiveAvgPool2d(1))
    model.extend([nn.Flatten(), nn.Linear(24, 4)])
    schedule = {"name": "linear", "warmup": "0ep", "ramp": "3ep"}
    pruner = Pruner(model, "pdp", "8x1", 0.7, epochs=4, schedule=schedule, exclude=["5"])
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for step in range(2):
            nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        for layer in pruner.layers:
            aim = min(1, (epoch + 1) / 3) * layer.final / 8
            assert layer.pruned == 8 * math.floor(aim + 0.5)
            assert pruner.pattern.removed(layer, pruner.method.keep(layer)) == layer.pruned
    pruner.finalize()
    blocks = sum(layer.units for layer in pruner.layers) // 8
    assert sum(layer.pruned for layer in pruner.layers) == 8 * math.floor(0.7 * blocks + 0.5)


def test_a_block_of_one_weight_takes_what_single_weights_take():
    torch.manual_seed(5)
    one, other = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5)), nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5))
    other.load_state_dict(one.state_dict())
    values = {"sparsity": 0.4, "epochs": 1, "schedule": NOW, "allocation": "global"}
    Pruner(one, "oneshot", "1x1", pattern_options={"relative_budget": False}, **values).finalize()
    Pruner(other, "oneshot", "random", **values).finalize()
    assert all(torch.equal(one[place].weight, other[place].weight) for place in (0, 1))


def test_layers_are_compared_by_their_own_mean_unless_told_otherwise():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        model[1].weight.copy_(model[0].weight / 100)
    shares = {}
    for relative in (True, False):
        options = {"relative_budget": relative}
        pruner = Pruner(model, pattern="4x4", sparsity=0.5, epochs=1, schedule=NOW, pattern_options=options)
        shares[relative] = pruner.preview_budget()
        pruner.remove()
    assert shares[True] == [128, 128] and shares[False] == [16, 240]  # one block stays


def test_ends_and_floors_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 12), nn.Linear(12, 6))
    values = {"sparsity": 0.4, "epochs": 1, "schedule": NOW}
    pruner = Pruner(model, "oneshot", "4x1", ends="first_dense", least_density=0.3, **values)
    pruner.finalize()
    assert pruner.layers[0].pruned == 0
    for layer in pruner.layers:
        assert int((layer.weight != 0).sum()) >= 0.3 * layer.units
    with pytest.raises(Refusal, match="empty a layer"):
        Pruner(nn.Linear(2, 8), pattern="4x2", epochs=1, schedule=NOW, sparsity=0.9)


def test_the_transposed_layer_of_gpt2_has_outputs_as_rows():
    model = nn.Sequential(Conv1D(8, 6))
    pruner = Pruner(model, "oneshot", "4x1", 0.5, epochs=1, schedule=NOW)
    assert input_axis(pruner.layers[0].sites[0]) == 0
    pruner.finalize()
    zero = model[0].weight == 0  # (inputs, outputs): 4 consecutive outputs of one input
    tiles = zero.unflatten(1, (2, 4))
    assert bool((tiles.all(2) == tiles.any(2)).all()) and int(zero.sum()) == 24


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pattern_options": {"block": [0, 1]}}, r'pattern_options={"block": \[0,1\]}'),
        ({"pattern_options": {"block": [4]}}, r"\[4\]"),
        ({"pattern_options": {"block": [4, 1, 2]}}, r"\[4,1,2\]"),
        ({"pattern_options": {"block": "4x1"}}, "'4x1'"),
        ({"pattern_options": {"block": 3.5}}, "3.5"),
        ({"pattern_options": {"block": [3.5, 1]}}, r"\[3.5,1\]"),
        ({"pattern_options": {"block": [-4, 1]}}, r"\[-4,1\]"),
        ({"pattern_options": {"block": [True, 1]}}, r"\[True,1\]"),
        ({"pattern_options": {"block": None}}, "None"),
        ({"pattern_options": {"block": [500, 1]}}, "no layer to prune"),
        ({"pattern_options": {"size": [4, 1]}}, "size"),
        ({"pattern_options": {"saliency": "l3"}}, "rms"),
        ({"pattern_options": {"saliency": "l1"}}, "no soft mask"),
        ({"sparsity": 1.2}, r"\[0, 1\)"),
        ({"sparsity": None}, "sparsity is missing"),
        ({"temperature_mode": "learned"}, "learned"),
    ],
)
def test_what_does_not_fit_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        Pruner(net(), **({"pattern": "block", "sparsity": 0.5, "epochs": 1, "schedule": NOW} | values))


@pytest.mark.parametrize("method", [name for name, known in PATTERNS_OF.items() if "block" not in known])
def test_methods_without_blocks_say_so(method):
    with pytest.raises(Refusal, match="block"):
        Pruner(net(), method, "4x1", sparsity=0.5, epochs=1)


@pytest.mark.parametrize("method", ["movement", "optg"])
def test_scores_of_blocks_learn_from_all_that_they_mask(method):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8, bias=False))
    pruner = Pruner(model, method, "4x2", 0.5, epochs=2, schedule={"name": "constant"}, allocation="uniform")
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    (scores,) = pruner.method.extras.values()
    assert scores.shape == (1, 2, 3)
    with torch.no_grad():
        scores.copy_(torch.arange(6.0).reshape(1, 2, 3))
    pruner.start_epoch(1)
    inputs = torch.randn(5, 6)
    model(inputs).square().sum().backward()
    mask = torch.tensor([[0.0, 0, 0], [1, 1, 1]]).repeat_interleave(4, 0).repeat_interleave(2, 1).double()
    stored = model[0].weight.detach().double()
    effective = (stored * mask).requires_grad_()
    (inputs.double() @ effective.T).square().sum().backward()
    expected = (effective.grad * stored).unflatten(0, (2, 4)).unflatten(2, (3, 2)).sum((1, 3))
    assert torch.allclose(scores.grad[0].double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(model[0].weight.grad.double(), effective.grad * mask, rtol=1e-4, atol=1e-4)
