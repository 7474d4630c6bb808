"""Network slimming against float64: the penalty until the cut, the cut over all |gamma|, training under the mask."""

import numpy as np
import torch
from channel_by_hand import (
    IMAGE,
    NORMS,
    UNITS,
    Net,
    assert_same_gradients,
    assert_zero_channels,
    examples,
    global_counts,
    gradients,
    scales,
    smallest,
)
from torch import nn

from pdp import Pruner

PENALTY = 0.03


def make():
    model = Net()
    schedule = {"name": "oneshot", "warmup": "2ep"}
    options = {"sparsity": 0.5, "epochs": 4, "schedule": schedule, "example_input": IMAGE, "penalty": PENALTY}
    pruner = Pruner(model, "slimming", "channel", **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    pruner.attach(optimizer)
    return model, pruner, optimizer


def by_hand(model):
    values = {name: scales(model, name) for name in UNITS}
    counts = global_counts(values, 9)  # half of 18
    return {name: smallest(values[name], counts[name]) for name in UNITS}


def l1(leaves):
    """lambda * sum |gamma| over the norms of prunable channels, the stem's not among them."""
    return PENALTY * sum(leaves[f"{norm}.weight"].abs().sum() for norms in NORMS.values() for norm in norms)


def test_a_run_is_that_of_the_formula():
    model, pruner, optimizer = make()
    masks = {}
    for epoch in range(4):
        expected_masks = by_hand(model) if epoch == 2 else masks
        pruner.start_epoch(epoch)
        masks = expected_masks
        if epoch == 2:
            for name, keep in masks.items():
                for norm in NORMS[name]:
                    module = model.get_submodule(norm)
                    buffer = optimizer.state[module.weight]["momentum_buffer"].numpy()
                    assert np.array_equal(module.weight.detach().numpy() != 0, keep)
                    assert np.array_equal(buffer != 0, keep)
        for step in range(2):
            images, labels = examples(2 * epoch + step)
            expected, own = gradients(model, images, labels, masks, l1 if epoch < 2 else None)
            penalty = pruner.penalty()
            assert (penalty is None) == (epoch >= 2)
            loss = nn.functional.cross_entropy(model(images), labels)
            loss = loss if penalty is None else loss + penalty
            loss.backward()
            assert abs(float(loss.detach()) - expected) < 1e-4
            assert_same_gradients(model, own)
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    pruner.finalize()
    assert sum(layer.pruned for layer in pruner.layers) == 9
    assert {layer.name: layer.pruned for layer in pruner.layers} == {name: int((~k).sum()) for name, k in masks.items()}
    assert_zero_channels(model, masks)
