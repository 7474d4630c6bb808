import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet50

from pdp.config.groups import CONF
from pdp.cost import count_macs
from pdp.errors import Refusal
from pdp.schedule.allocation import allocate, erk_budget, erk_densities, least_units, read_shares
from pdp.survey import find_layers


def layers_of(model):
    layers = find_layers(model)
    for layer in layers:
        layer.units = layer.weight.numel()
    return layers


def magnitude(layer):
    return layer.weight.detach().abs()


@pytest.fixture
def small():
    return layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(64, 10)))


@pytest.mark.parametrize("name", ["global", "erk"])
@given(share=st.floats(0, 0.95))
def test_the_budget_sums_to_the_total_exactly(name, share):
    layers = layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(64, 10)))
    units = sum(layer.units for layer in layers)
    assert sum(allocate(name, layers, share, magnitude)) == math.floor(share * units + 0.5)


def test_global_is_one_cut_over_all_weights(small):
    budget = allocate("global", small, 0.6, magnitude)
    flat = torch.cat([magnitude(layer).reshape(-1) for layer in small])
    cut = flat.sort().values[sum(budget) - 1]
    assert budget == [int((magnitude(layer) <= cut).sum()) for layer in small]


def test_uniform_gives_every_layer_the_share(small):
    assert allocate("uniform", small, 0.9, magnitude) == [math.floor(0.9 * layer.units + 0.5) for layer in small]


def test_erk_is_rigls_formula_with_full_layers_dense():
    shapes = [(64, 3, 7, 7), (64, 64, 3, 3), (512, 512, 3, 3), (1000, 512)]
    sizes = [math.prod(shape) for shape in shapes]
    densities = erk_densities(shapes, sizes, 0.2)
    assert densities[0] == 1.0  # the stem would be over-full
    scale = [density / (sum(shape) / math.prod(shape)) for density, shape in zip(densities, shapes, strict=True)]
    assert scale[1] == pytest.approx(scale[2]) and scale[2] == pytest.approx(scale[3])
    kept = sum(density * size for density, size in zip(densities, sizes, strict=True))
    assert kept == pytest.approx(0.2 * sum(sizes))


def test_erk_and_uniform_reach_rigls_published_share_of_macs():
    # RigL's README: ERK 0.42 and 0.24, uniform with a dense stem 0.23 and 0.13 of ResNet-50's FLOPs at 80 and 90 %;
    # with one more digit, as others computed them by the same rule.
    model = resnet50()
    layers = layers_of(model)
    macs = count_macs(model, torch.zeros(1, 3, 224, 224)).set_index("name").macs
    for share, erk, uniform in ((0.8, 0.414, 0.223), (0.9, 0.242, 0.126)):
        budget = allocate("erk", layers, share, magnitude)
        sparse = sum(
            macs[layer.name] * (1 - pruned / layer.units) for layer, pruned in zip(layers, budget, strict=True)
        )
        assert sparse / macs.sum() == pytest.approx(erk, abs=6e-4)
        rest = macs.sum() - macs["conv1"]
        assert (macs["conv1"] + (1 - share) * rest) / macs.sum() == pytest.approx(uniform, abs=6e-4)


def test_uniform_shares_of_all_layers_leave_so_many_macs():
    layers, macs = layers_of(resnet50()), count_macs(resnet50(), torch.zeros(1, 3, 224, 224)).set_index("name").macs
    for share, left in ((0.8, 817.8e6), (0.9, 408.9e6), (0.95, 204.5e6), (0.98, 81.8e6)):
        budget = allocate("uniform", layers, share, magnitude)
        sparse = sum(macs[layer.name] * (1 - gone / layer.units) for layer, gone in zip(layers, budget, strict=True))
        assert sparse == pytest.approx(left, abs=0.06e6)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6), st.floats(0, 0.9))
def test_erk_empties_no_layer(shapes, share):
    sizes = [math.prod(shape) for shape in shapes]
    total = math.floor(share * sum(sizes))
    try:
        budget = erk_budget(shapes, sizes, total)
    except Refusal:
        assert total > sum(size - 1 for size in sizes)
        return
    assert sum(budget) == total
    assert all(0 <= pruned < size or size == 1 and pruned == 0 for pruned, size in zip(budget, sizes, strict=True))


def test_a_file_names_each_layers_share(small, tmp_path):
    path = tmp_path / "budget.csv"
    path.write_text("layer,share\n0,0.5\n3,0.9\n")
    assert allocate("file", small, None, magnitude, path) == [108, 0, 576]
    with pytest.raises(Refusal, match="contradicts"):
        allocate("file", small, 0.5, magnitude, path)


def test_a_layer_is_emptied_only_where_the_file_says_so(small, tmp_path):
    path = tmp_path / "budget.csv"
    path.write_text("layer,share\n0,0.999\n1,0.9999\n3,1\n")
    assert allocate("file", small, None, magnitude, path) == [215, 71, 640]
    small[0].least = 22
    with pytest.raises(Refusal, match="prunes 216 of the 216 units of 0, of which it must keep 22: lower its share to"):
        allocate("file", small, None, magnitude, path)
    path.write_text("layer,share\n0,0.898148\n")  # the share that the line named
    assert allocate("file", small, None, magnitude, path) == [194, 0, 0]


def test_a_run_hands_its_budget_on(small, tmp_path):
    (tmp_path / "layers.csv").write_text(
        "name,type,weights,nonzero,sparsity\n0,Conv2d,216,54,0.75\n1,Conv2d,72,72,0.0\n3,Linear,640,64,0.9\n"
    )
    assert allocate("file", small, None, magnitude, tmp_path) == [162, 0, 576]


@pytest.mark.parametrize("text", ["layer,share\n0,0.5\n", "\ufefflayer,share\n0,0.5\n", "layer, share\r\n0, 0.5\r\n"])
def test_a_budget_as_spreadsheets_write_it_is_read(tmp_path, text):
    (tmp_path / "budget.csv").write_text(text, encoding="utf-8", newline="")
    assert read_shares(tmp_path / "budget.csv") == {"0": 0.5}


@pytest.mark.parametrize(("pattern", "units", "words"), [("channel", 1, "are of channels"), ("4x1", 27, "are of wei")])
def test_a_run_of_other_units_hands_no_budget_on(small, tmp_path, pattern, units, words):
    # The run of channels names the first of two coupled layers alone: the other one would stay dense.
    (tmp_path / "layers.csv").write_text("name,sparsity,prunable,share\n0,0.5,True,0.5\n1,0.5,True,\n")
    (tmp_path / "record.json").write_text(f'{{"pattern": "{pattern}"}}')
    small[0].units //= units
    with pytest.raises(Refusal, match=words):
        allocate("file", small, None, magnitude, tmp_path)
    small[0].units = small[0].weight.numel() // (28 - units)
    assert allocate("file", small, None, magnitude, tmp_path) == [small[0].units // 2, 0, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer,share\nclassifer,0.5\n", "classifer"),
        ("layer,share\n0,1.5\n", "1.5"),
        ("a,b\n1,2\n", "layer,share"),
        ("", "first line is ''"),
        ("layer,share\n", "no layers"),
        ("layer,share\n0,0,5\n", "a row of more cells than its first line, '0,0,5': write shares with a point"),
        ("layer,share\n0,0\n3,0.0\n", "prunes nothing of this model"),
        (f"layer,share\n{'0' * 200_000},0.5\n", "cannot be read as layer,share"),
        ("layer,share\n0\n", "cannot be read as layer,share"),
        ("layer;share\n0;0.5\n", "first line is 'layer;share' and has no layer and no share"),
        ("layer,sparsity\n0,0.5\n", "has no share: begin it with layer,share"),
        ("layer,share\n0,much\n", "much"),
        ("layer,share\n0,0.9\n3,0.5\n0,0.1\n", "names 0 twice, with 0.9 and 0.1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(small, tmp_path, text, words):
    path = tmp_path / "budget.csv"
    path.write_text(text)
    with pytest.raises(Refusal, match=words) as caught:
        allocate("file", small, None, magnitude, path)
    assert "Refusal" not in str(caught.value)
    with pytest.raises(Refusal, match="nowhere"):
        allocate("file", small, None, magnitude, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "share", "words"),
    [("golbal", 0.5, "golbal"), ("global", None, "sparsity"), ("erk", 1.0, "1.0"), ("global", 0.9999, "empty")],
)
def test_what_cannot_be_met_is_refused(small, name, share, words):
    with pytest.raises(Refusal, match=words):
        allocate(name, small, share, magnitude)


def test_strs_published_budget_has_its_published_sparsity_and_multiply_adds():
    shares = read_shares(CONF / "allocation" / "str_resnet50_9023.csv")
    model = resnet50(weights=None)
    with torch.no_grad():
        for name, share in shares.items():
            weight = model.get_submodule(name).weight
            weight.view(-1)[: round(share * weight.numel())] = 0
            weight.view(-1)[round(share * weight.numel()) :] = 1
    weights = [model.get_submodule(name).weight for name in shares]
    zeros = sum(int((one == 0).sum()) for one in weights)
    assert zeros / sum(one.numel() for one in weights) == pytest.approx(0.9023, abs=5e-5)
    # 342.7 M with the 100,352 additions of the average pool (RAIVNLab/STR, README).
    macs = count_macs(model, torch.zeros(1, 3, 224, 224))["sparse_macs"].sum()
    assert macs + 100_352 == pytest.approx(342.7e6, abs=5e4)


def floored(layers, least_density=0.0, ends="pruned"):
    for layer, least in zip(layers, least_units(layers, least_density, ends), strict=True):
        layer.least = least
    return layers


@pytest.mark.parametrize("name", ["global", "uniform", "erk"])
@given(
    share=st.floats(0.5, 0.97), least=st.sampled_from([0.01, 0.02, 0.025]), ends=st.sampled_from(["pruned", "dense"])
)
def test_a_floor_holds_in_every_layer_and_the_total_stays(name, share, least, ends):
    layers = layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64, 10)))
    with torch.no_grad():
        layers[1].weight.mul_(1e-3)  # a global cut alone would leave one weight of it
    floored(layers, least, ends)
    units = sum(layer.units for layer in layers)
    total = math.floor(share * units + 0.5)
    if total > sum(layer.units - layer.least for layer in layers):
        with pytest.raises(Refusal, match="least_density"):
            allocate(name, layers, share, magnitude)
        return
    budget = allocate(name, layers, share, magnitude)
    assert sum(budget) == total
    for place, (layer, count) in enumerate(zip(layers, budget, strict=True)):
        dense = ends == "dense" and place in (0, 3)
        assert layer.units - count >= (layer.units if dense else math.ceil(least * layer.units - 1e-9))


def test_uniform_with_dense_ends_is_acdcs_own():
    """Stem and classifier stay, all others have one share, and the total is the target's."""
    layers = floored(
        layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64, 10))),
        ends="dense",
    )
    units = sum(layer.units for layer in layers)
    budget = allocate("uniform", layers, 0.9, magnitude)
    inner = 0.9 * units / (layers[1].units + layers[2].units)
    assert budget[0] == budget[3] == 0 and budget[1] == pytest.approx(inner * layers[1].units, abs=1)
    assert allocate("uniform", floored(layers, ends="first_dense"), 0.9, magnitude)[3] > 0


@pytest.mark.parametrize(
    ("values", "said"),
    [((1.0, "pruned"), "least_density"), ((-0.1, "pruned"), "least_density"), ((0.0, "last"), "ends")],
)
def test_floors_that_are_none_are_refused(small, values, said):
    with pytest.raises(Refusal, match=said):
        least_units(small, *values)
