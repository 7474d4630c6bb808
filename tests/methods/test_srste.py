"""SR-STE against float64: the mask of every step, its gradient with the pull on pruned weights, whole steps."""

import numpy as np
import pytest
import torch
from nm_by_hand import LAYER, by_hand, examples, kept_in_groups, largest, loss, net, stored

from pdp import Pruner

DECAY, RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.01, 0.9, 0.02


def make(ratio="2:4", **options):
    model = net()
    pruner = Pruner(model, "srste", ratio, epochs=3, decay=DECAY, **options)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    pruner.attach(optimizer)
    return model, pruner, optimizer


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
def test_whole_steps_are_those_of_the_formula(n, m):
    model, pruner, optimizer = make(f"{n}:{m}")
    weight, velocity = stored(model), 0.0
    kept_once = set()
    for step in range(5):
        if step in (0, 3):
            pruner.start_epoch(step // 3)
        images, targets = examples(step)
        mask = largest(weight, n, m)
        outputs, gradient = by_hand(model, weight * mask, images, targets)
        result = model(images)
        assert np.allclose(result.detach().double().numpy(), outputs, atol=1e-4)
        loss(result, targets).backward()
        pruner.after_backward()
        gradient = gradient + DECAY * (1 - mask) * weight
        assert np.allclose(model[1].weight.grad.double().numpy(), gradient, rtol=1e-4, atol=1e-4)
        velocity = MOMENTUM * velocity + gradient + WEIGHT_DECAY * weight
        weight = weight - RATE * velocity
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        assert np.allclose(stored(model), weight, rtol=1e-4, atol=1e-4)
        assert np.array_equal(pruner.layers[0].state["keep"].numpy(), largest(stored(model), n, m))
        kept_once.add(mask.tobytes())
    assert len(kept_once) > 1  # pruned weights have swapped in


def test_without_the_decay_it_is_plain_straight_through():
    model, pruner, _ = make()
    pruner.method.options.decay = 0.0
    pruner.start_epoch(0)
    images, targets = examples()
    mask = largest(stored(model), 2, 4)
    _, gradient = by_hand(model, stored(model) * mask, images, targets)
    loss(model(images), targets).backward()
    pruner.after_backward()
    assert np.allclose(model[1].weight.grad.double().numpy(), gradient, rtol=1e-4, atol=1e-4)
    assert np.abs(gradient[~mask]).min() > 0


def test_the_decay_comes_once_a_step_however_many_micro_batches_it_takes():
    model, pruner, _ = make()
    pruner.start_epoch(0)
    mask, weight, expected = largest(stored(model), 2, 4), stored(model), 0.0
    for micro in range(3):
        images, targets = examples(micro)
        expected = expected + by_hand(model, weight * mask, images, targets)[1]
        loss(model(images), targets).backward()
    pruner.after_backward()
    expected = expected + DECAY * (1 - mask) * weight
    assert np.allclose(model[1].weight.grad.double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_loop_that_forgets_the_decay_is_told():
    model = net()
    pruner = Pruner(model, "srste", "2:4", epochs=1)
    pruner.start_epoch(0)
    with pytest.raises(RuntimeError, match="attach"):
        pruner.step()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
def test_it_ends_with_the_largest_of_each_group(n, m):
    model, pruner, optimizer = make(f"{n}:{m}")
    stem = model[0].weight.detach().clone()
    for epoch in range(3):
        pruner.start_epoch(epoch)
        assert pruner.layers[0].pruned == model[1].weight.numel() * (m - n) // m
    expected = np.where(largest(stored(model), n, m), stored(model), 0.0)
    pruner.finalize()
    assert np.array_equal(stored(model), expected)
    assert kept_in_groups(model[1].weight, m) == {n}
    assert pruner.share == 1 - n / m and torch.equal(model[0].weight, stem)
    assert [layer.name for layer in pruner.layers] == [LAYER] and pruner.skipped == {"0": "the stem"}
