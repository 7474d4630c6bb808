"""Mistakes of other code bases: momentum that revives pruned weights, a best epoch before the target, a lost ratio."""

import pytest
import torch
from small_models import batch, case_net, case_pruner, case_step, train_epoch
from torch import nn

from pdp.training.recording import layer_table


def optimizer_of(model, decay=0.0):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)


@pytest.mark.parametrize("method", ["gmp", "oneshot", "acdc", "granet", "rigl", "pofa"])
def test_momentum_from_before_the_mask_moves_no_pruned_weight(method):
    torch.manual_seed(1)
    model = case_net()
    schedule = (
        {"name": "oneshot", "warmup": "1ep"}
        if method in ("gmp", "oneshot", "pofa")
        else {"warmup": "1ep", "ramp": "2ep"}
    )
    if method in ("granet", "rigl"):
        schedule = {"warmup": 0, "ramp": "2ep"}  # sparse from the start
    still = {"drop_fraction": 0.0} if method == "rigl" else {}  # whose first step would exchange weights
    pruner, optimizer = case_pruner(model, method, "random", 20, schedule=schedule, **still), optimizer_of(model)
    pruner.attach(optimizer)
    epoch = 0
    while not (pruner.fraction and pruner.layers[1].active):
        # Momentum that would carry every weight far away.
        for layer in pruner.layers:
            optimizer.state[layer.weight]["momentum_buffer"] = torch.full_like(layer.weight, 100.0)
        pruner.start_epoch(epoch)
        if not pruner.fraction:
            for step in range(3):
                case_step(model, pruner, optimizer, *batch(step, dtype=torch.float64))
        epoch += 1
    layer = pruner.layers[1]
    pruned = ~layer.state["keep"]
    before = layer.weight.detach().clone()
    kept_momentum = optimizer.state[layer.weight]["momentum_buffer"][~pruned]
    assert pruned.any() and kept_momentum.min() == 100  # what stays goes on
    images, labels = batch(9, dtype=torch.float64)
    nn.functional.cross_entropy(model(images), labels).backward()
    pruner.after_backward()
    optimizer.step()
    assert torch.equal(layer.weight.detach()[pruned], before[pruned])
    assert not torch.equal(layer.weight.detach()[~pruned], before[~pruned])


def test_an_epoch_counts_as_the_best_only_where_what_is_learned_has_reached_the_target():
    torch.manual_seed(1)
    model = case_net()
    pruner, optimizer = case_pruner(model, "str", "random", epochs=6), optimizer_of(model)
    pruner.attach(optimizer)
    counted = []
    for epoch in range(6):
        train_epoch(model, pruner, optimizer, epoch, dtype=torch.float64)
        with pruner.hard():
            pass
        counted.append((pruner.fraction, pruner.share, pruner.at_target))
    assert all(at_target == (fraction == 1 and share > 0.799) for fraction, share, at_target in counted)
    assert counted[0][2] is False and any(fraction == 1 for fraction, _, _ in counted)
    with torch.no_grad():  # thresholds that have fallen so far that nothing is pruned
        for extra in pruner.method.extras.values():
            extra.fill_(-100.0)
    with pruner.hard():
        pass
    assert pruner.share == 0 and not pruner.at_target


@pytest.mark.parametrize("method", ["str", "cs"])
def test_without_a_target_no_epoch_counts_and_the_share_reached_is_reported(method):
    torch.manual_seed(1)
    model = case_net()
    options = {"initial": -2.0, "controller": "none"} if method == "str" else {"initial": 0.0, "controller": "none"}
    from pdp import Pruner

    pruner = Pruner(model, method, epochs=4, steps_per_epoch=3, schedule={"warmup": 0, "ramp": "1ep"}, **options)
    optimizer = optimizer_of(model)
    pruner.attach(optimizer)
    for epoch in range(4):
        train_epoch(model, pruner, optimizer, epoch, dtype=torch.float64)
    assert not pruner.at_target
    pruner.finalize()
    zeros = sum(int((layer.weight == 0).sum()) for layer in pruner.layers)
    units = sum(layer.units for layer in pruner.layers)
    assert 0 < zeros < units and pruner.share == zeros / units
    assert pruner.report().pruned.sum() == zeros


def test_a_budget_is_taken_over_by_another_method(tmp_path):

    torch.manual_seed(1)
    model = case_net()
    first, optimizer = case_pruner(model, "str", "random", epochs=4), optimizer_of(model)
    first.attach(optimizer)
    for epoch in range(4):
        train_epoch(model, first, optimizer, epoch, dtype=torch.float64)
    first.finalize()
    report = first.report()
    report.rename(columns={"name": "layer"})[["layer", "share"]].to_csv(tmp_path / "budget.csv", index=False)
    for method in ("pdp", "gmp", "optg", "acdc", "movement", "dnw", "rigl", "oneshot"):
        torch.manual_seed(1)
        other = case_net()
        values = {"sparsity": None, "allocation": "file", "allocation_path": tmp_path / "budget.csv"}
        second, optimizer = case_pruner(other, method, "random", epochs=4, **values), optimizer_of(other)
        second.attach(optimizer)
        for epoch in range(4):
            train_epoch(other, second, optimizer, epoch, dtype=torch.float64)
        second.finalize()
        assert second.report().pruned.tolist() == report.pruned.tolist(), method


def test_a_channel_budget_is_taken_over_from_the_layers_of_a_run(tmp_path):
    first = case_pruner(case_net(), "oneshot", "channel", epochs=4)
    first.start_epoch(3)
    first.finalize()
    frame = layer_table(first.model, first, torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert set(frame.name[frame.share.notna()]) == {layer.name for layer in first.layers} and first.share > 0.4
    assert (frame.sparsity > frame.share.fillna(0)).any()  # readers of pruned channels lose weights, too
    frame.to_csv(tmp_path / "layers.csv", index=False)
    torch.manual_seed(5)  # other weights, which would give another budget
    values = {"sparsity": None, "allocation": "file", "allocation_path": tmp_path}
    second = case_pruner(case_net(), "pdp", "channel", epochs=4, **values)
    second.start_epoch(3)
    second.finalize()
    assert second.report().pruned.tolist() == first.report().pruned.tolist()
