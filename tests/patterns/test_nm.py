"""N:M: the counts of every group against brute force, the cuts against float64, layers that stay dense."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import batch
from torch import nn
from torchvision.models import resnet50
from transformers.pytorch_utils import Conv1D

from pdp import Pruner, count_macs
from pdp.errors import Refusal
from pdp.masks.soft import soft_prune
from pdp.methods.method import Moment
from pdp.patterns import make_pattern
from pdp.patterns.nm import merge_exchanges, obeys, ranks_in_groups, sorted_columns
from pdp.survey import find_layers

NOW = {"warmup": "0ep", "ramp": "1ep"}
RATIOS = [(2, 4), (1, 4), (2, 8), (4, 8), (1, 16)]


def nm_net():
    """A stem, a depthwise convolution, a pointwise and a 3x3 one, one that does not divide, a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 18, 3),
        nn.Conv2d(18, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def groups_by_hand(weight, dim, m):
    """Groups as lists of index tuples in (out, kernel positions, in) order, by plain loops."""
    shape = weight.shape
    others = [range(size) for axis, size in enumerate(shape) if axis != dim]
    grid = np.array(np.meshgrid(*others, indexing="ij")).reshape(len(others), -1).T
    found = []
    for rest in grid:
        for start in range(0, shape[dim], m):
            found.append([tuple(np.insert(rest, dim, start + step)) for step in range(m)])
    return found


def pruned_by_hand(weight, dim, n, m, pruned):
    """Which weights go: the smallest of all groups' M - N smallest."""
    values = np.abs(weight.detach().double().numpy())
    candidates = []
    for place, group in enumerate(groups_by_hand(weight, dim, m)):
        ordered = sorted(range(m), key=lambda one: (values[group[one]], one))
        candidates += [(values[group[one]], place, rank, group[one]) for rank, one in enumerate(ordered[: m - n])]
    return {index for *_, index in sorted(candidates)[:pruned]}


@st.composite
def cases(draw):
    n, m = draw(st.sampled_from([(2, 4), (1, 4), (3, 4), (1, 2), (2, 8), (2, 3)]))
    kind = draw(st.sampled_from(["conv", "channels_last", "linear", "conv1d"]))
    torch.manual_seed(draw(st.integers(0, 100)))
    inputs, outputs = m * draw(st.integers(1, 3)), draw(st.integers(1, 4))
    if kind == "linear":
        module = nn.Linear(inputs, outputs)
    elif kind == "conv1d":
        module = Conv1D(outputs, inputs)
    else:
        module = nn.Conv2d(inputs, outputs, (2, 3))
        if kind == "channels_last":
            module = module.to(memory_format=torch.channels_last)
    with torch.no_grad():
        module.weight.normal_()
        if draw(st.booleans()):
            module.weight.copy_((module.weight * 2).round() / 2)  # many equal ones
    return module, n, m, draw(st.floats(0, 1))


@given(cases())
def test_every_group_loses_what_brute_force_takes(case):
    module, n, m, fraction = case
    (layer,) = find_layers(module)
    pattern = make_pattern("nm", n=n, m=m)
    groups = layer.weight.numel() // m
    layer.pruned = math.floor(fraction * groups * (m - n) + 0.5)
    keep = pattern.keep(layer, pattern.saliency(layer))
    dim = 0 if isinstance(module, Conv1D) else 1
    gone = {tuple(index) for index in (~keep).nonzero().tolist()}
    assert gone == pruned_by_hand(module.weight, dim, n, m, layer.pruned)
    assert len(gone) == layer.pruned
    if layer.pruned == groups * (m - n):
        assert obeys(torch.where(keep, layer.weight, 0.0), layer, n, m)


@given(cases())
def test_each_groups_cut_lies_midway(case):
    module, n, m, fraction = case
    (layer,) = find_layers(module)
    pattern = make_pattern("nm", n=n, m=m)
    layer.pruned = math.floor(fraction * layer.weight.numel() // m * (m - n) + 0.5)
    (cut,) = pattern.cuts([layer])
    spread = pattern.spread(cut, layer, layer.members[0], layer.weight)
    assert spread.shape == layer.weight.shape
    dim = 0 if isinstance(module, Conv1D) else 1
    gone = pruned_by_hand(module.weight, dim, n, m, layer.pruned)
    values = module.weight.detach().double().abs()
    for group in groups_by_hand(module.weight, dim, m):
        ordered = sorted(float(values[index]) for index in group)
        count = sum(index in gone for index in group)
        expected = -math.inf if count == 0 else (ordered[count - 1] + ordered[count]) / 2
        assert all(float(spread[index]) == pytest.approx(expected, rel=1e-6, abs=1e-12) for index in group)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_the_sorting_network_sorts(size):
    values = torch.randn(500, size)
    assert torch.equal(torch.stack(sorted_columns(values), -1), values.sort(-1).values)
    # the zero-one principle: a network that sorts every row of zeros and ones sorts everything
    if size <= 8:
        rows = torch.tensor([[one >> bit & 1 for bit in range(size)] for one in range(2**size)])
        assert torch.equal(torch.stack(sorted_columns(rows), -1), rows.sort(-1).values)
    assert len(merge_exchanges(size)) == {2: 1, 4: 5, 8: 19, 16: 63}[size]


@pytest.mark.parametrize(("n", "m"), RATIOS)
@pytest.mark.parametrize("method", ["pdp", "gmp"])
def test_the_ramp_is_exact_and_the_end_obeys(n, m, method):
    model = nm_net()
    pruner = Pruner(model, method, f"{n}:{m}", epochs=4, schedule={"name": "linear", "warmup": "0ep", "ramp": "3ep"})
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    by_name = dict(model.named_modules())
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for step in range(2):
            nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        fraction = min(1, (epoch + 1) / 3)
        for layer in pruner.layers:
            free = layer.weight.numel() // m * (m - n)
            assert layer.pruned == math.floor(fraction * free + 0.5)
            keep = pruner.method.keep(layer)
            assert int((~keep).sum()) == layer.pruned
            counts = (~keep).movedim(1, -1).unflatten(-1, (-1, m)).sum(-1)
            assert int(counts.max()) <= m - n
    pruner.finalize()
    assert [layer.name for layer in pruner.layers] == (["2", "5", "9"])
    for layer in pruner.layers:
        groups = by_name[layer.name].weight.movedim(1, -1).unflatten(-1, (-1, m))
        assert bool(((groups != 0).sum(-1) == n).all())
    assert set(pruner.skipped) == {"0", "1", "6"}
    assert pruner.share == pytest.approx(1 - n / m, abs=1e-12)
    assert pruner.skipped == {"0": "the stem", "1": "depthwise", "6": f"18 inputs do not divide by {m}"}


def test_the_layer_computes_with_a_soft_mask_of_its_groups_cuts():
    torch.manual_seed(4)
    model = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)
    holder = nn.Sequential(nn.Conv2d(3, 8, 1), model)
    pruner = Pruner(holder, pattern="nm", epochs=1, schedule=NOW, temperature=1e-3)
    pruner.start_epoch(0)
    weight = model.weight.detach().double()
    ordered = weight.abs().movedim(1, -1).unflatten(-1, (-1, 4)).sort(-1).values
    cut = ((ordered[..., 1] + ordered[..., 2]) / 2)[..., None].expand(*ordered.shape).flatten(-2).movedim(-1, 1)
    expected = weight / (1 + torch.exp(-(weight**2 - cut**2) / 1e-3))
    images = torch.randn(2, 8, 5, 5)
    reference = nn.functional.conv2d(images.double(), expected, model.bias.double())
    assert torch.allclose(model(images).double(), reference, atol=1e-5)
    model(images).sum().backward()
    w = weight.clone().requires_grad_()
    soft = w / (1 + torch.exp(-(w**2 - cut**2) / 1e-3))
    nn.functional.conv2d(images.double(), soft, model.bias.double()).sum().backward()
    assert torch.allclose(model.weight.grad.double(), w.grad, rtol=1e-3, atol=1e-4)


def test_relative_temperature_is_kappa_times_the_mean_squared_cut():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3))
    pruner = Pruner(model, pattern="2:4", epochs=1, schedule=NOW, temperature_mode="relative", kappa=0.05)
    pruner.start_epoch(0)
    (layer,) = pruner.layers
    expected = 0.05 * float(layer.state["cut"].double().square().mean())
    assert float(layer.state["temperature"]) == pytest.approx(expected, rel=1e-5)
    effective = pruner.method.effective_weight(layer, layer.weight)
    with torch.no_grad():
        layer.weight.mul_(10)
        pruner.method.update(pruner.layers, Moment(0, 0, pruner.fraction, epoch_start=True))
        assert torch.allclose(pruner.method.effective_weight(layer, layer.weight), 10 * effective, rtol=1e-4, atol=1e-6)


def test_relative_temperature_of_single_weights():
    model = nn.Linear(50, 20)
    pruner = Pruner(
        model, sparsity=0.5, epochs=1, schedule=NOW, temperature_mode="relative", kappa=0.02, allocation="uniform"
    )
    pruner.start_epoch(0)
    (layer,) = pruner.layers
    ordered = model.weight.detach().double().abs().reshape(-1).sort().values
    cut = (ordered[499] + ordered[500]) / 2
    expected = soft_prune(model.weight.detach().double(), cut, 0.02 * float(cut) ** 2)
    assert torch.allclose(pruner.method.effective_weight(layer, layer.weight).double(), expected, atol=1e-6)


def test_the_totals_of_multiply_adds_that_papers_quote_for_two_of_four():
    model = resnet50()
    images = torch.zeros(1, 3, 224, 224)
    pruner = Pruner(model, pattern="2:4", epochs=1, schedule=NOW)
    pruner.start_epoch(0)
    pruner.finalize()
    frame = count_macs(model, images).set_index("name")
    # ASP's rule: stem dense, classifier pruned
    assert frame.sparse_macs.sum() == pytest.approx(2103.6e6, abs=0.05e6)
    assert 1 - frame.nonzero.sum() / frame.params.sum() == pytest.approx(0.4998, abs=5e-5)
    macs = frame.macs
    classifier, stem = macs["fc"], macs["conv1"]
    # with prune.exclude=[fc], and with the stem pruned as well (SR-STE)
    assert frame.sparse_macs.sum() + classifier / 2 == pytest.approx(2104.6e6, abs=0.05e6)
    assert (macs.sum() - classifier) / 2 + classifier == pytest.approx(2045.6e6, abs=0.05e6)
    assert frame.sparse_macs["conv1"] == stem


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pattern": "4:4"}, 'n(=|": )4'),
        ({"pattern": "0:4"}, 'n(=|": )0'),
        ({"pattern": "2:4", "sparsity": 0.6}, "contradicts"),
        ({"pattern": "nm", "pattern_options": {"k": 2}}, "k"),
        ({"pattern": "2:4", "allocation": "file", "allocation_path": "x.csv"}, "its own budget"),
        ({"pattern": "7:64"}, "no layer to prune"),
        ({"pattern": "chanel"}, "channel"),
    ],
)
def test_what_does_not_fit_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        Pruner(nm_net(), epochs=1, schedule=NOW, **values)


def test_a_sparsity_that_agrees_is_taken():
    assert Pruner(nm_net(), pattern="2:4", sparsity=0.5, epochs=1, schedule=NOW).target == 0.5


@given(
    st.sampled_from([1, 2, 3, 4, 8, 9, 16]).flatmap(
        lambda members: st.lists(
            st.lists(
                st.sampled_from([0.0, -0.0, 1.0, 1.5, 2.0, -3.0, math.inf, -math.inf, math.nan]),
                min_size=members,
                max_size=members,
            ),
            min_size=1,
            max_size=6,
        )
    )
)
def test_ranks_are_those_of_a_stable_sort_with_ties_infinities_and_nan(groups):
    found = ranks_in_groups(torch.tensor(groups))
    for row, ranks in zip(groups, found.tolist(), strict=True):
        ordered = sorted(
            range(len(row)), key=lambda one: (math.isnan(row[one]), 0 if math.isnan(row[one]) else row[one])
        )
        assert [ordered.index(member) for member in range(len(row))] == ranks


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(16, 8, 3), nn.Linear(4, 8), nn.Linear(16, 8)]
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_mask_lies_in_memory_as_its_weight(module, memory):
    if module.weight.dim() == 4:
        module.weight.data = module.weight.data.contiguous(memory_format=memory)
    (layer,) = find_layers(module)
    pattern = make_pattern("nm", n=2, m=4)
    layer.pruned = layer.weight.numel() // 2
    keep = pattern.keep(layer, pattern.saliency(layer))
    assert keep.stride() == module.weight.stride()


@pytest.mark.parametrize("m", [4, 8])
def test_with_a_saliency_that_is_no_number_as_many_go_as_are_asked_for(m):
    (layer,) = find_layers(nn.Linear(16, 4))
    saliency = layer.weight.detach().abs()
    saliency[1, 2] = math.nan
    layer.pruned = 16  # half of what may go
    assert (~make_pattern("nm", n=m // 2, m=m).keep(layer, saliency)).sum() == 16


def test_no_layers_have_no_cuts_and_ask_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pdp.kernels.gpu.groups", None)
    assert make_pattern("nm", n=2, m=4).cuts([]) == []


@pytest.mark.parametrize("last", [False, True])
def test_cuts_found_in_the_ramp_and_at_its_end_lie_as_the_weight_does_and_stay_there(last):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    model = model.to(memory_format=torch.channels_last) if last else model
    pruner = Pruner(model, pattern="2:4", epochs=4, schedule={"warmup": "0ep", "ramp": "2ep"}, temperature=1e-3)
    (layer,) = [one for one in pruner.layers if one.name == "1"]
    for epoch in range(4):
        pruner.start_epoch(epoch)
        held = layer.state["cut"]
        for _ in range(2):
            model(torch.randn(2, 4, 6, 6)).square().mean().backward()
            with torch.no_grad():
                layer.weight.mul_(1.1)
            pruner.step()
            assert layer.state["cut"] is held
            laid = held.movedim(-1, 1)
            assert laid.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    ordered = layer.weight.detach().abs().movedim(1, -1).unflatten(-1, (-1, 4)).sort(-1).values
    assert torch.equal(held, ordered[..., 1] + (ordered[..., 2] - ordered[..., 1]) * 0.5)


def test_a_weight_that_lies_in_another_order_is_pruned_in_the_ramp_and_after_it():
    found = []
    for turned in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8))
        if turned:
            for module in model:
                own = module.weight.detach()
                module.weight = nn.Parameter(own.transpose(0, 1).contiguous().transpose(0, 1))
        pruner = Pruner(model, pattern="2:4", epochs=3, schedule={"warmup": "0ep", "ramp": "2ep"}, temperature=1e-3)
        inputs = torch.randn(4, 8)
        for epoch in range(3):
            pruner.start_epoch(epoch)
            for _ in range(2):
                model.zero_grad()
                model(inputs).square().mean().backward()
                with torch.no_grad():
                    for one in model.parameters():
                        one -= 0.1 * one.grad
                pruner.step()
        found.append([one.detach().contiguous() for one in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
