"""Every method with every group pattern it supports: exact final counts; scores, phases and thresholds of groups."""

import numpy as np
import pytest
import torch
from channel_by_hand import IMAGE, Net, assert_same_gradients, assert_zero_channels, filters, gradients
from channel_by_hand import examples as images_and_labels
from nm_by_hand import by_hand, examples, kept_in_groups, largest, loss, net, stored
from torch import nn

from pdp import Pruner
from pdp.errors import Refusal
from pdp.methods.checks import PATTERNS_OF
from pdp.methods.options import OPTIONS

EPOCHS = 8
VARIANTS = [(name, {}) for name in OPTIONS if name not in ("dense", "held")] + [("movement", {"variant": "soft"})]
NM = [one for one in VARIANTS if "nm" in PATTERNS_OF.get(one[0], ("nm",))]
CHANNEL = [one for one in VARIANTS if "channel" in PATTERNS_OF.get(one[0], ("channel",))]
SCORED = [("optg", {}), ("movement", {})]


def label(value):
    return "-".join((value[0], *value[1].values()))


def times(method):
    """Whole-run schedules have no times of their own."""
    return {"warmup": "1ep", "ramp": "4ep"} if method not in ("optg", "acdc") else {}


def train(model, pruner, batches, objective, epochs=EPOCHS):
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    if pruner.method.calibrates:
        pruner.calibrate([batches(0)[0]])
    pruner.attach(optimizer)
    for epoch in epochs if isinstance(epochs, range) else range(epochs):
        pruner.start_epoch(epoch)
        for step in range(2):
            inputs, targets = batches(2 * epoch + step)
            value, penalty = objective(model(inputs), targets), pruner.penalty()
            (value if penalty is None else value + penalty).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        for layer in pruner.layers:
            if layer.active and "keep" in layer.state:
                keep = layer.state["keep"]
                assert int((~keep).sum()) * layer.units == layer.pruned * keep.numel()
    return optimizer


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4)])
@pytest.mark.parametrize("case", NM, ids=label)
def test_every_group_obeys_in_the_end(case, n, m):
    method, options = case
    model = net(16, 8)
    pruner = Pruner(model, method, f"{n}:{m}", epochs=EPOCHS, schedule=times(method), **options)
    train(model, pruner, lambda seed: examples(seed, 8), lambda outputs, targets: loss(outputs, targets) / 100)
    pruner.finalize()
    assert kept_in_groups(model[1].weight, m) == {n}
    assert pruner.share == 1 - n / m
    assert torch.count_nonzero(model[0].weight) == model[0].weight.numel()


@pytest.mark.parametrize("case", CHANNEL, ids=label)
def test_pruned_channels_are_zero_in_the_end(case):
    method, options = case
    model = Net()
    values = {"sparsity": 0.5, "epochs": EPOCHS, "schedule": times(method), "example_input": IMAGE}
    pruner = Pruner(model, method, "channel", **values, **options)
    train(model, pruner, images_and_labels, nn.functional.cross_entropy)
    pruner.finalize()
    assert sum(layer.pruned for layer in pruner.layers) == 9
    keeps = {name: filters(model, name).any(1) for name in ("one", "last")}
    assert {layer.name: layer.pruned for layer in pruner.layers} == {k: int((~v).sum()) for k, v in keeps.items()}
    assert_zero_channels(model, keeps)


def test_combinations_without_sense_are_refused():
    for method, patterns in PATTERNS_OF.items():
        if "nm" not in patterns:
            with pytest.raises(Refusal, match="=.?nm"):
                Pruner(net(), method, "2:4", epochs=EPOCHS)
        if "channel" not in patterns:
            with pytest.raises(Refusal, match="=.?channel"):
                Pruner(Net(), method, "channel", sparsity=0.5, epochs=EPOCHS, example_input=IMAGE)
    with pytest.raises(Refusal, match="l1"):
        options = {"saliency": "l1"}
        Pruner(Net(), "pdp", "channel", sparsity=0.5, epochs=2, example_input=IMAGE, pattern_options=options)


@pytest.mark.parametrize("case", SCORED, ids=label)
def test_scores_of_single_weights_in_groups(case):
    """dL/dS = dL/dW~ * W of all weights, dL/dW = dL/dW~ * B, and the largest scores of each group stay."""
    model = net()
    schedule = {"name": "constant"} if case[0] == "optg" else times(case[0])
    pruner = Pruner(model, case[0], "2:4", epochs=EPOCHS, schedule=schedule)
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad():
        pruner.method.extras["1"].copy_(100 * torch.rand(model[1].weight.shape))
    pruner.start_epoch(EPOCHS - 1)
    mask = largest(pruner.method.extras["1"].detach().double().numpy(), 2, 4)
    images, targets = examples(3)
    outputs, gradient = by_hand(model, stored(model) * mask, images, targets)
    result = model(images)
    assert np.allclose(result.detach().double().numpy(), outputs, atol=1e-4)
    loss(result, targets).backward()
    assert np.allclose(pruner.method.extras["1"].grad.double().numpy(), gradient * stored(model), rtol=1e-3, atol=1e-3)
    assert np.allclose(model[1].weight.grad.double().numpy(), gradient * mask, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", SCORED, ids=label)
def test_the_score_of_a_channel_gets_all_that_it_masks(case):
    model = Net()
    values = {"sparsity": 0.5, "epochs": EPOCHS, "schedule": times(case[0]), "example_input": IMAGE}
    pruner = Pruner(model, case[0], "channel", **values, allocation="uniform")
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad():
        for extra in pruner.method.extras.values():
            extra.copy_(torch.randn(extra.shape))
    pruner.start_epoch(EPOCHS - 1)
    masks = {}
    for name, extra in pruner.method.extras.items():
        masks[name] = np.ones(len(extra))
        masks[name][np.argsort(extra.detach().numpy())[: len(extra) // 2]] = 0
    images, labels = images_and_labels(3)
    expected, own = gradients(model, images, labels, masks)
    value = nn.functional.cross_entropy(model(images), labels)
    value.backward()
    assert abs(float(value.detach()) - expected) < 1e-4
    assert_same_gradients(model, own)
    for name, extra in pruner.method.extras.items():
        assert np.allclose(extra.grad.double().numpy(), own[name], rtol=1e-3, atol=1e-4)


def test_dnw_passes_the_gradient_to_every_weight_of_a_group():
    model = net()
    pruner = Pruner(model, "dnw", "1:4", epochs=2)
    pruner.start_epoch(0)
    images, targets = examples()
    outputs, gradient = by_hand(model, stored(model) * largest(stored(model), 1, 4), images, targets)
    result = model(images)
    loss(result, targets).backward()
    assert np.allclose(result.detach().double().numpy(), outputs, atol=1e-4)
    assert np.allclose(model[1].weight.grad.double().numpy(), gradient, rtol=1e-3, atol=1e-3)


def test_acdc_groups_are_dense_again_between_its_phases():
    """At epoch 10 of 100 pruned, at 15 dense again from zeros, momentum gone."""
    model = net()
    pruner = Pruner(model, "acdc", "2:4", epochs=100)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner.attach(optimizer)
    for epoch in (9, 10, 15):
        if epoch == 10:
            mask = largest(stored(model), 2, 4)
        pruner.start_epoch(epoch)
        if epoch >= 10:
            assert np.array_equal(stored(model) != 0, mask)
        if epoch == 15:
            assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())
        loss(model(examples(epoch)[0]), examples(epoch)[1]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        assert (stored(model) == 0).any() == (epoch == 10)


def test_channels_that_acdc_pruned_train_again():
    """A filter and a scale that are both zero would have no gradient, and a dense phase would be one in name only."""
    model = Net()
    pruner = Pruner(model, "acdc", "channel", sparsity=0.5, epochs=100, example_input=IMAGE)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner.attach(optimizer)
    for epoch in (9, 10, 15):
        pruner.start_epoch(epoch)
        if epoch == 10:
            gone = {layer.name: ~layer.state["keep"].numpy() for layer in pruner.layers}
        if epoch >= 10:
            assert all(not filters(model, name)[ones].any() for name, ones in gone.items())
        nn.functional.cross_entropy(model(images_and_labels(epoch)[0]), images_and_labels(epoch)[1]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert all((np.abs(filters(model, name)[ones]).sum(1) > 0).all() for name, ones in gone.items())


def test_a_threshold_takes_no_more_than_the_pattern_lets_go():
    model = net()
    schedule = {"warmup": "0ep", "ramp": "1ep"}
    pruner = Pruner(model, "movement", "2:4", epochs=4, schedule=schedule, variant="soft")
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    with torch.no_grad():
        pruner.method.extras["1"].copy_(-20 + torch.rand(model[1].weight.shape))
    pruner.start_epoch(0)
    assert pruner.share == 0.5
    assert int(pruner.layers[0].state["keep"].sum()) == model[1].weight.numel() // 2


@pytest.mark.parametrize(
    "method, pattern, options",
    [
        ("str", "random", {}),
        ("cs", "random", {}),
        ("granet", "random", {}),
        ("movement", "random", {"variant": "soft"}),
        ("pofa", "random", {"stage": "finetune"}),
        ("chex", "channel", {}),
    ],
)
def test_methods_that_find_their_shares_take_no_budget(method, pattern, options, tmp_path):
    path = tmp_path / "budget.csv"
    path.write_text("layer,share\n" + "".join(f"{name},0.5\n" for name in ("stem", "first", "second", "last")))
    with pytest.raises(Refusal, match=f"allocation=file has no meaning for method={method}, which finds"):
        Pruner(
            Net(),
            method,
            pattern,
            epochs=EPOCHS,
            allocation="file",
            allocation_path=path,
            example_input=IMAGE if pattern == "channel" else None,
            **options,
        )
