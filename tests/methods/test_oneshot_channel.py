"""One-shot channels by L1 norm (Li et al.) against float64: shares, masks, gradients, momentum, the final model."""

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
    global_counts,
    gradients,
    smallest,
)
from torch import nn

from pdp import Pruner


def by_hand(model, allocation):
    """The smallest sum |w|; layers compare by it over the layer's mean, or each has the same share."""
    values = {name: np.abs(filters(model, name)).sum(1) for name in UNITS}
    counts = {"one": 4, "last": 5}
    if allocation == "global":
        counts = global_counts({name: ones / ones.mean() for name, ones in values.items()}, 9)
    return {name: smallest(values[name], counts[name]) for name in UNITS}


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_run_is_that_of_the_formula(allocation):
    model = Net()
    with torch.no_grad():
        model.last.weight[:3].mul_(0.1)
    pruner = Pruner(
        model,
        "oneshot",
        "channel",
        sparsity=0.5,
        epochs=3,
        schedule={"name": "oneshot", "warmup": "1ep"},
        allocation=allocation,
        example_input=IMAGE,
        pattern_options={"saliency": "l1"},
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    pruner.attach(optimizer)
    masks = {}
    for epoch in range(3):
        expected_masks = by_hand(model, allocation) if epoch == 1 else masks
        pruner.start_epoch(epoch)
        masks = expected_masks
        for name, keep in masks.items():
            for one in MADE_BY[name]:
                weight = model.get_submodule(one).weight
                assert np.array_equal(weight.detach().flatten(1).any(1).numpy(), keep)
                assert np.array_equal(optimizer.state[weight]["momentum_buffer"].flatten(1).any(1).numpy(), keep)
        for step in range(2):
            images, labels = examples(2 * epoch + step)
            expected, own = gradients(model, images, labels, masks)
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            assert abs(float(loss.detach()) - expected) < 1e-4
            assert_same_gradients(model, own)
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    pruner.finalize()
    assert sum(layer.pruned for layer in pruner.layers) == 9
    assert_zero_channels(model, masks)
