"""SFP against float64: which filters are zero before each epoch, that they train and grow back, the final cut."""

import numpy as np
import pytest
import torch
from channel_by_hand import (
    IMAGE,
    MADE_BY,
    UNITS,
    Net,
    assert_same_gradients,
    assert_zero_channels,
    examples,
    filters,
    gradients,
    smallest,
)
from torch import nn

from pdp import Pruner

COUNTS = {"one": 3, "last": 4}  # floor(0.4 * units + 0.5): uniform


def make():
    model = Net()
    return model, Pruner(model, "sfp", "channel", sparsity=0.4, epochs=4, example_input=IMAGE)


def by_hand(model):
    return {name: smallest(np.linalg.norm(filters(model, name), axis=1), COUNTS[name]) for name in UNITS}


@pytest.mark.parametrize("epoch", [0, 1])
def test_before_an_epoch_the_smallest_filters_become_zero_and_nothing_else(epoch):
    """Before the first one too, as in the authors' code."""
    model, pruner = make()
    if epoch:
        pruner.start_epoch(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruner.step() if epoch else None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # within an epoch nothing
    keeps = by_hand(model)
    pruner.start_epoch(epoch)
    pruner.step()
    for key, value in model.state_dict().items():
        owner = next((name for name, ones in MADE_BY.items() if key in [f"{one}.weight" for one in ones]), None)
        expected = before[key]
        if owner:
            expected = expected * torch.from_numpy(keeps[owner]).reshape(-1, 1, 1, 1)
        assert torch.equal(value, expected), key


def test_the_forward_is_the_stored_weights_own_and_no_gradient_is_masked():
    model, pruner = make()
    for epoch in (0, 1):
        pruner.start_epoch(epoch)
        images, labels = examples(epoch)
        expected, own = gradients(model, images, labels, {})
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        assert abs(float(loss.detach()) - expected) < 1e-5
        assert_same_gradients(model, own)


def test_zeroed_filters_grow_back_without_momentum():
    """A filter and a scale that are both zero would have no gradient."""
    model, pruner = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner.start_epoch(0)
    keeps = by_hand(model)
    pruner.start_epoch(1)
    nn.functional.cross_entropy(model(examples()[0]), examples()[1]).backward()
    optimizer.step()
    pruner.step()
    for name, keep in keeps.items():
        assert (np.linalg.norm(filters(model, name)[~keep], axis=1) > 0).all()


def test_another_epoch_zeroes_whatever_is_smallest_then_and_momentum_is_left_alone():
    model, pruner = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner.attach(optimizer)
    pruner.start_epoch(0)
    nn.functional.cross_entropy(model(examples()[0]), examples()[1]).backward()
    optimizer.step()
    buffer = optimizer.state[model.last.weight]["momentum_buffer"].clone()
    first = by_hand(model)
    pruner.start_epoch(1)
    assert torch.equal(optimizer.state[model.last.weight]["momentum_buffer"], buffer)
    with torch.no_grad():
        model.last.weight.copy_(torch.randn(model.last.weight.shape))
    second = by_hand(model)
    assert not np.array_equal(first["last"], second["last"])
    pruner.start_epoch(2)
    assert np.array_equal(model.last.weight.detach().flatten(1).any(1).numpy(), second["last"])


def test_the_last_cut_is_hard():
    model, pruner = make()
    for epoch in range(4):
        pruner.start_epoch(epoch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    keeps = by_hand(model)
    pruner.finalize()
    assert {layer.name: layer.pruned for layer in pruner.layers} == COUNTS
    assert_zero_channels(model, keeps)
