"""OptG against its equations in numpy: scores, their rate, one cut an epoch, the sigmoid schedule."""

import math

import numpy as np
import pytest
import torch
from by_hand import (
    UNITS,
    HandSgd,
    close,
    computed_with,
    extras,
    gradients_of,
    masks,
    rounded,
    sgd,
    stored,
    train_step,
    two_layers,
    without_smallest_of_all,
    zeros_in,
)

from pdp import Pruner
from pdp.schedule.shapes import make_schedule


def rate(epoch, epochs):
    """sigmoid(e - E/2), the epochs counted as in a run of 100; within a millionth of its ends at them."""
    value = 1 / (1 + math.exp(50 - 100 * epoch / epochs))
    return 0.0 if value < 1e-6 else 1.0 if value > 1 - 1e-6 else value


def test_ten_epochs_as_by_hand():
    model = two_layers()
    pruner = Pruner(model, "optg", sparsity=0.8, epochs=10)
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.02)
    weights, scores = stored(model), [np.zeros_like(w) for w in stored(model)]
    of_weights, of_scores = HandSgd(0.05, 0.9, 0.02), HandSgd(0.05, 0.9, 0.0)
    seen = []
    for epoch in range(10):
        pruner.start_epoch(epoch)
        level = rate(epoch, 10)
        keeps = without_smallest_of_all(scores, rounded(level * 0.8 * UNITS))
        assert close(masks(pruner), keeps)
        seen.append(sum(zeros_in(keeps)))
        for step in range(2):
            effective = [w * k for w, k in zip(weights, keeps, strict=True)]
            assert computed_with(model, effective)
            upstream = gradients_of(effective, 2 * epoch + step)
            gradients = [g * k for g, k in zip(upstream, keeps, strict=True)]
            of_s = [g * w for g, w in zip(upstream, weights, strict=True)]
            assert close(train_step(model, pruner, optimizer, 2 * epoch + step), gradients)
            assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
            weights = of_weights.step(weights, gradients)
            scores = of_scores.step(scores, of_s, lr=0.05 * level)
            assert close(stored(model), weights) and close(extras(pruner), scores)
            assert close(masks(pruner), keeps)  # it holds for the epoch
    assert seen == [0, 0, 0, 0, 0, rounded(0.4 * UNITS), *[rounded(0.8 * UNITS)] * 4]
    with torch.no_grad():  # as if the last steps had turned the order round: what ships was trained
        for extra in pruner.method.extras.values():
            extra.neg_()
    pruner.finalize()
    assert close(stored(model), [w * k for w, k in zip(weights, keeps, strict=True)])
    assert sum(zeros_in(stored(model))) == rounded(0.8 * UNITS)


def test_a_run_that_ends_under_the_target_is_cut_to_it():
    model = two_layers()
    pruner = Pruner(model, "optg", sparsity=0.5, epochs=10)
    optimizer = sgd(model, pruner, lr=0.05)
    for epoch in range(6):  # half of the target
        pruner.start_epoch(epoch)
        train_step(model, pruner, optimizer, epoch)
    expected = without_smallest_of_all(extras(pruner), UNITS // 2)
    with pytest.warns(UserWarning, match="of the target"):
        pruner.finalize()
    assert close([w != 0 for w in stored(model)], [k != 0 for k in expected])


@pytest.mark.parametrize("epochs", [100, 180, 20])
def test_the_sigmoid_at_its_boundaries(epochs):
    schedule = make_schedule("sigmoid", epochs)
    fractions = [schedule.fraction(epoch, schedule.start) for epoch in range(epochs)]
    assert fractions == pytest.approx([rate(epoch, epochs) for epoch in range(epochs)], abs=1e-12)
    assert (fractions[0], fractions[epochs // 2], fractions[-1]) == (0.0, 0.5, 1.0)
    assert fractions == sorted(fractions)
    if epochs == 100:
        assert fractions[36] == 0 < fractions[37] and fractions[45] == pytest.approx(0.0067, abs=1e-4)
        assert fractions[55] == pytest.approx(0.9933, abs=1e-4) and fractions[63] < 1 == fractions[64]
