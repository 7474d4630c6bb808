"""A pruner in a plain training loop: shares, cuts, budgets, state."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import (
    CALIBRATED,
    CASES,
    PATTERNS,
    VARIANT_CASES,
    batch,
    case_net,
    case_pruner,
    case_step,
    small_net,
    train_epoch,
)
from torch import nn

from pdp import Pruner, find_cut
from pdp.errors import Refusal

SHORT = {"warmup": "1ep", "ramp": "3ep"}
PRUNING = [method for method, pattern in CASES if pattern == "random"]
IN_TRAINING = [method for method in PRUNING if method not in CALIBRATED]


def make(model, method="pdp", **values):
    values = {"sparsity": 0.8, "epochs": 6, "schedule": SHORT} | values
    return Pruner(model, method, **values)


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_dense_then_ramp_then_full_then_hard():
    model = small_net()
    pruner, optimizer = make(model), optimizer_of(model)
    seen = []
    for epoch in range(6):
        train_epoch(model, pruner, optimizer, epoch)
        seen.append((pruner.phase, round(pruner.share, 3)))
    units = sum(layer.units for layer in pruner.layers)
    finals = [layer.final for layer in pruner.layers]
    ramp = [sum(math.floor(f * final + 0.5) for final in finals) / units for f in (1 / 3, 2 / 3)]
    assert [phase for phase, _ in seen] == ["dense", "ramp", "ramp", "full", "full", "full"]
    assert [share for _, share in seen] == pytest.approx([0, *ramp, 0.8, 0.8, 0.8], abs=1e-3)
    pruner.finalize()
    assert pruner.phase == "hard"
    weights = [module.weight for module in model if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum(int((weight == 0).sum()) for weight in weights) == math.floor(0.8 * units + 0.5)


def test_two_pruners_share_nothing():
    first, second = make(small_net()), make(small_net())
    first.start_epoch(5)
    assert first.layers[0].pruned and first.layers[0].state
    assert not second.layers[0].pruned and not second.layers[0].state and second.layers[0].trail.cut != 0
    assert first.skipped is not second.skipped and first.metrics is not second.metrics


def test_the_gap_between_soft_and_hard_weights_against_float64():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(40, 30)).double()
    pruner = make(model, temperature=0.003, sparsity=0.6)
    pruner.start_epoch(5)
    weight = model[0].weight.detach().numpy()
    magnitudes = np.sort(np.abs(weight).ravel())
    cut = (magnitudes[719] + magnitudes[720]) / 2
    mask = 1 / (1 + np.exp(-(weight**2 - cut**2) / 0.003))
    soft, hard = mask * weight, np.where(np.abs(weight) > cut, weight, 0)
    (row,) = pruner.soft_gap().itertuples()
    assert row.cut == pytest.approx(cut, rel=1e-6) and row.temperature == 0.003
    assert row.gap == pytest.approx(np.linalg.norm(soft - hard) / np.linalg.norm(soft), rel=1e-4)
    assert row.soft_mask == pytest.approx(np.mean((mask > 0.1) & (mask < 0.9)), abs=1e-6) and 0.1 < row.soft_mask < 1


def test_what_is_excluded_counts_in_no_budget():
    model = small_net()
    names = [layer.name for layer in make(small_net()).layers]
    pruner = make(model, exclude=names[:1])
    pruner.start_epoch(5)
    inside = [layer for layer in pruner.layers]
    assert [layer.name for layer in inside] == names[1:]
    assert sum(layer.pruned for layer in inside) == math.floor(0.8 * sum(layer.units for layer in inside) + 0.5)
    pruner.finalize()
    assert torch.count_nonzero(model.get_submodule(names[0]).weight) == model.get_submodule(names[0]).weight.numel()


@settings(max_examples=25)
@given(share=st.floats(0, 0.97), method=st.sampled_from(IN_TRAINING), allocation=st.sampled_from(["global", "erk"]))
def test_the_share_asked_is_the_share_of_zeros(share, method, allocation):
    torch.manual_seed(1)
    model = small_net()
    pruner = Pruner(
        model,
        method,
        sparsity=share,
        epochs=2,
        steps_per_epoch=1,
        schedule={"warmup": "0ep", "ramp": "1ep"},
        allocation=allocation,
    )
    optimizer = optimizer_of(model)
    pruner.attach(optimizer)
    train_epoch(model, pruner, optimizer, 0, steps=1)
    pruner.finalize()
    report = pruner.report()
    asked = math.floor(share * report.weights.sum() + 0.5)
    assert report.pruned.sum() == asked
    if method not in ("rigl", "granet"):  # what has just grown is zero until it is trained
        assert (report.weights - report.nonzero).sum() == asked


def test_the_budget_is_one_global_cut_at_the_start_and_stays():
    model = small_net()
    pruner, optimizer = make(model, sparsity=0.6), optimizer_of(model)
    train_epoch(model, pruner, optimizer, 0)
    flat = torch.cat([layer.weight.detach().abs().reshape(-1) for layer in pruner.layers])
    cut = find_cut(flat, 0.6)
    expected = [int((layer.weight.abs() < cut).sum()) for layer in pruner.layers]
    pruner.start_epoch(1)
    assert [layer.final for layer in pruner.layers] == expected
    for epoch in (1, 2, 3):
        train_epoch(model, pruner, optimizer, epoch)
    assert [layer.final for layer in pruner.layers] == expected


def test_one_cut_for_an_optimizer_step_and_none_in_forward_or_evaluation(monkeypatch):
    from pdp.patterns.pattern import Pattern

    calls = []
    find = Pattern.cuts
    monkeypatch.setattr(Pattern, "cuts", lambda *a: calls.append(1) or find(*a))
    model = small_net()
    pruner, optimizer = make(model, schedule={"warmup": "0ep", "ramp": "3ep"}), optimizer_of(model)
    pruner.start_epoch(0)
    assert len(calls) == 1
    for _ in range(4):  # micro-batches of one step
        nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
    assert len(calls) == 1
    optimizer.step()
    pruner.step()
    assert len(calls) == 2
    model.eval()
    model(batch()[0])
    with pruner.hard():
        model(batch()[0])
    assert len(calls) == 2


def test_the_cut_is_of_the_weights_after_the_step():
    model = small_net()
    pruner, optimizer = make(model), optimizer_of(model)
    for epoch in range(3):
        train_epoch(model, pruner, optimizer, epoch)
        for layer in pruner.layers:
            if layer.pruned:
                expected = (
                    layer.weight.detach().abs().reshape(-1).sort().values[layer.pruned - 1 : layer.pruned + 1].mean()
                )
                assert float(layer.state["cut"]) == pytest.approx(float(expected), rel=1e-6)


def test_the_layer_computes_with_the_soft_mask_times_the_stored_weight():
    model = small_net()
    pruner = make(model, schedule={"warmup": "0ep", "ramp": "1ep"}, temperature=1e-3)
    pruner.start_epoch(0)
    plain = small_net()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in pruner.layers:
            w, t = layer.weight.double(), float(layer.state["cut"])
            plain.get_submodule(layer.name).weight.copy_(w / (1 + torch.exp(-(w**2 - t**2) / 1e-3)))
    model.eval(), plain.eval()
    images, _ = batch()
    assert torch.allclose(model(images), plain(images), atol=1e-6)


def test_a_weight_under_the_cut_can_come_back():
    model = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(0.01, 0.1, 10)[None])
    pruner = Pruner(model, sparsity=0.5, epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"}, temperature=1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    pruner.start_epoch(0)
    for _ in range(60):
        (1 - model(torch.eye(10)[4:5])).square().backward()  # only the fifth weight, under the cut, has a use
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    pruner.finalize()
    assert model.weight[0, 4] > 0.1
    assert int((model.weight == 0).sum()) == 5


def test_a_share_of_zero_is_the_identity():
    model, twin = small_net(), small_net()
    twin.load_state_dict(model.state_dict())
    pruner = make(model, sparsity=0.0)
    ours, theirs = optimizer_of(model), optimizer_of(twin)
    for epoch in range(6):
        train_epoch(model, pruner, ours, epoch)
        for step in range(3):
            images, labels = batch(100 * epoch + step)
            nn.functional.cross_entropy(twin(images), labels).backward()
            theirs.step()
            theirs.zero_grad()
    pruner.finalize()
    for one, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("method", "pattern"), CASES + VARIANT_CASES)
@pytest.mark.parametrize("stop", [(0, 2), (2, 1), (4, 0)])
def test_a_saved_pruner_goes_on_bit_for_bit(method, pattern, stop):
    moments = [(epoch, step) for epoch in range(6) for step in range(3)]

    def start():
        torch.manual_seed(3)
        model = case_net()
        pruner, optimizer = case_pruner(model, method, pattern, epochs=6), optimizer_of(model)
        pruner.attach(optimizer)
        return model, pruner, optimizer

    def go_on(model, pruner, optimizer, among):
        for epoch, step in among:
            if step == 0:
                pruner.start_epoch(epoch)
            case_step(model, pruner, optimizer, *batch(100 * epoch + step, dtype=torch.float64))

    whole = start()
    go_on(*whole, moments)
    first = start()
    go_on(*first, [moment for moment in moments if moment < stop])
    file = io.BytesIO()
    torch.save(
        {"model": first[0].state_dict(), "optimizer": first[2].state_dict(), "pruner": first[1].state_dict()}, file
    )
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = start()
    second[0].load_state_dict(state["model"])
    second[2].load_state_dict(state["optimizer"])
    second[1].load_state_dict(state["pruner"])
    go_on(*second, [moment for moment in moments if moment >= stop])
    whole[1].finalize(), second[1].finalize()
    for one, other in zip(whole[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("method", "pattern"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_method_ends_in_exact_zeros_whatever_the_memory_layout(method, pattern, memory_format):
    torch.manual_seed(3)
    model = case_net().to(memory_format=memory_format)
    pruner, optimizer = case_pruner(model, method, pattern, epochs=4), optimizer_of(model)
    pruner.attach(optimizer)
    for epoch in range(4):
        train_epoch(model, pruner, optimizer, epoch, dtype=torch.float64)
    pruner.finalize()
    units = sum(layer.units for layer in pruner.layers)
    asked = PATTERNS[pattern] or 0.5
    assert sum(layer.pruned for layer in pruner.layers) == math.floor(asked * units + 0.5)
    if pattern != "channel":
        zeros = sum(int((layer.weight == 0).sum()) for layer in pruner.layers)
        # A weight that grew at zero and got no gradient since is one more.
        late = 0.01 * units if method in ("rigl", "granet") else 0
        assert 0 <= zeros - math.floor(asked * units + 0.5) <= late


def test_the_automatic_start_waits_for_five_good_epochs():
    model = small_net()
    pruner = make(model, epochs=20, schedule={"warmup": "auto", "ramp": "5ep"})
    metrics = [None, 0.3, 0.6, 0.6, 0.4, 0.6, 0.6, 0.7, 0.7, 0.8, 0.9]
    for epoch, metric in enumerate(metrics):
        pruner.start_epoch(epoch, metric=metric)
    assert pruner.start == 9 and pruner.fraction == pytest.approx(0.4)


def test_the_automatic_start_comes_at_last_where_the_ramp_still_fits():
    pruner = make(small_net(), epochs=12, schedule={"warmup": "auto", "ramp": "5ep"})
    with pytest.warns(UserWarning, match="auto"):
        for epoch in range(12):
            pruner.start_epoch(epoch, metric=0.1)
    assert pruner.start == 7 and pruner.fraction == 1


def test_step_unit_schedules_move_within_an_epoch():
    model = small_net()
    pruner = make(model, epochs=2, steps_per_epoch=3, schedule={"warmup": "2it", "ramp": "3it", "unit": "step"})
    optimizer = optimizer_of(model)
    shares = []
    for epoch in range(2):
        pruner.start_epoch(epoch)
        for step in range(3):
            shares.append(round(pruner.fraction, 3))
            nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
            optimizer.step()
            pruner.step()
    assert shares == [0, 0, 0.333, 0.667, 1, 1]


def test_hard_evaluation_has_the_exact_share_and_leaves_no_trace():
    model = small_net()
    pruner, optimizer = make(model), optimizer_of(model)
    for epoch in range(5):
        train_epoch(model, pruner, optimizer, epoch)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    images, _ = batch()
    with pruner.hard():
        hard = model(images)
    with pruner.baked() as baked, pruner.hard():
        assert torch.equal(baked(images), hard)
    soft = model(images)
    assert not torch.equal(hard, soft)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    pruner.finalize()
    assert torch.equal(model(images), hard)


def test_finalize_before_the_ramp_ended_warns_and_prunes_to_the_target():
    model = small_net()
    pruner = make(model)
    pruner.start_epoch(0)
    with pytest.warns(UserWarning, match="of the target"):
        pruner.finalize()
    assert pruner.share == pytest.approx(0.8, abs=1e-3)
    with pytest.raises(RuntimeError, match="finalize"):
        pruner.step()


def test_the_report_adds_up():
    model = small_net()
    pruner, optimizer = make(model), optimizer_of(model)
    for epoch in range(6):
        train_epoch(model, pruner, optimizer, epoch)
    soft = pruner.report()
    pruner.finalize()
    hard = pruner.report()
    assert soft.equals(hard)
    assert list(hard.name) == ["0", "3", "5", "8"]
    for row in hard.itertuples():
        assert row.nonzero == int(torch.count_nonzero(model.get_submodule(row.name).weight)) == row.weights - row.pruned


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sparsity": None}, "sparsity"),
        ({"sparsity": 1.0}, "1.0"),
        ({"sparsity": -0.1}, "-0.1"),
        ({"sparsity": 0.9999}, "empty"),
        ({"method": "pdq"}, "did you mean pdp"),
        ({"temperature": 0.0}, "temperature"),
        ({"temprature": 1e-4}, "temprature"),
        ({"pattern": "diagonal"}, "diagonal"),
        ({"exclude": ["*.attention"]}, "attention"),
        ({"exclude": ["*"]}, "no prunable layer"),
        ({"schedule": {"warmup": "4ep", "ramp": "3ep"}}, "does not fit"),
        ({"method": "gmp", "temperature": 1.0}, "temperature"),
        ({"allocation": "fair"}, "fair"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_training(values, words):
    with pytest.raises(Refusal, match=words):
        make(small_net(), **values)


def test_a_state_of_another_model_is_refused():
    state = make(small_net()).state_dict()
    with pytest.raises(Refusal, match="another model"):
        make(small_net(classes=5)).load_state_dict(state)
    with pytest.raises(Refusal, match="method"):
        make(small_net(), "gmp").load_state_dict(state)


def test_step_before_start_epoch_says_what_to_call():
    with pytest.raises(RuntimeError, match="start_epoch"):
        make(small_net()).step()


def test_gmps_mask_changes_only_when_the_share_grows_and_gives_no_gradient():
    model = small_net()
    pruner, optimizer = make(model, "gmp"), optimizer_of(model)
    for epoch in range(3):
        train_epoch(model, pruner, optimizer, epoch)
    layer = pruner.layers[0]
    keep = layer.state["keep"].clone()
    assert int((~keep).sum()) == layer.pruned
    nn.functional.cross_entropy(model(batch()[0]), batch()[1]).backward()
    assert torch.count_nonzero(layer.weight.grad[~keep]) == 0 and torch.count_nonzero(layer.weight.grad[keep]) > 0
    for epoch in (3, 4, 5):
        before = layer.state["keep"].clone()
        train_epoch(model, pruner, optimizer, epoch)
        assert torch.equal(layer.state["keep"], before) == (epoch > 3)
    pruner.finalize()
    assert torch.equal(layer.weight != 0, layer.state["keep"])
