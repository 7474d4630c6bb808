"""STR against its equations in numpy: the threshold's gradient and decay, the resulting shares, the controller."""

import math

import numpy as np
import pytest
import torch
from by_hand import (
    SIZES,
    UNITS,
    HandSgd,
    close,
    computed_with,
    extras,
    gradients_of,
    rounded,
    sgd,
    stored,
    train_step,
    two_layers,
    zeros_in,
)

from pdp import Pruner

RAMP = {"warmup": "1ep", "ramp": "3ep"}


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def soft(weights, thresholds):
    pairs = zip(weights, thresholds, strict=True)
    return [np.sign(w) * np.maximum(abs(w) - sigmoid(s), 0) for w, s in pairs]


@pytest.mark.parametrize("decay", [None, 0.3, 0.0])
def test_steps_as_by_hand_and_the_share_that_follows(decay):
    model = two_layers()
    pruner = Pruner(model, "str", epochs=5, schedule=RAMP, controller="none", initial=-1.5, threshold_decay=decay)
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.1)
    assert pruner.target is None
    weights, thresholds = stored(model), [np.float64(-1.5)] * 2
    of_weights, of_thresholds = HandSgd(0.05, 0.9, 0.1), HandSgd(0.05, 0.9, 0.1 if decay is None else decay)
    for step in range(6):
        if step in (0, 3):
            pruner.start_epoch(step // 3)
        effective = soft(weights, thresholds)
        assert computed_with(model, effective)
        upstream = gradients_of(effective, step)
        alive = [e != 0 for e in effective]
        gradients = [g * a for g, a in zip(upstream, alive, strict=True)]
        slopes = [sigmoid(s) * (1 - sigmoid(s)) for s in thresholds]
        of_s = [-np.sum(np.sign(w) * g) * slope for w, g, slope in zip(weights, gradients, slopes, strict=True)]
        assert close(train_step(model, pruner, optimizer, step), gradients, atol=1e-6)
        weights, thresholds = of_weights.step(weights, gradients), of_thresholds.step(thresholds, of_s)
        assert close(stored(model), weights, atol=1e-6) and close(extras(pruner), thresholds, rtol=1e-5)
    expected = soft(weights, thresholds)
    with pruner.hard():
        assert pruner.share == sum(zeros_in(expected)) / UNITS and 0 < pruner.share < 1
        assert computed_with(model, expected)
    assert not pruner.at_target
    with pytest.warns(UserWarning, match="of the target"):
        pruner.finalize()
    assert zeros_in(stored(model)) == zeros_in(expected) and close(stored(model), expected, atol=1e-6)


def test_the_authors_start_prunes_nothing_and_decays():
    model = two_layers()
    pruner = Pruner(model, "str", epochs=5, schedule=RAMP, controller="none")
    optimizer = sgd(model, pruner, lr=0.1, decay=0.5)
    pruner.start_epoch(0)
    assert computed_with(model, stored(model))
    train_step(model, pruner, optimizer, 0)
    assert close(extras(pruner), [-3200 * (1 - 0.1 * 0.5)] * 2)


def test_without_a_controller_a_target_is_met_at_the_end():
    model = two_layers()
    pruner = Pruner(
        model, "str", sparsity=0.7, epochs=4, schedule=RAMP, controller="none", initial=-1.5, threshold_decay=0.0
    )
    optimizer = sgd(model, pruner, lr=0.05)
    for epoch in range(4):
        pruner.start_epoch(epoch)
        train_step(model, pruner, optimizer, epoch)
    assert sum(zeros_in(soft(stored(model), extras(pruner)))) != rounded(0.7 * UNITS)
    weights, before = stored(model), extras(pruner)
    pruner.finalize()
    after = extras(pruner)
    assert after[1] - after[0] == pytest.approx(before[1] - before[0], abs=1e-5)
    assert sum(zeros_in(stored(model))) == rounded(0.7 * UNITS)
    assert close(stored(model), soft(weights, after), atol=1e-6)


@pytest.mark.parametrize("initial", [-3200.0, -6.0])
def test_the_controller_keeps_differences_and_follows_the_cubic_ramp(initial):
    model = two_layers()
    pruner = Pruner(model, "str", sparsity=0.8, epochs=6, schedule=RAMP, initial=initial)
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=1e-3)
    gaps = []
    for epoch in range(6):
        before = extras(pruner)
        pruner.start_epoch(epoch)
        after = extras(pruner)
        fraction = 0 if epoch < 1 else 1 - (1 - min(1, epoch / 3)) ** 3
        if fraction:
            gaps.append(float(after[1] - after[0]))
            assert gaps[-1] == pytest.approx(float(before[1] - before[0]), abs=1e-5)
            assert sum(zeros_in(soft(stored(model), after))) == rounded(fraction * 0.8 * UNITS)
        else:
            assert close(before, after)
        for step in range(3):
            train_step(model, pruner, optimizer, 3 * epoch + step)
    assert len({round(gap, 4) for gap in gaps}) > 3  # training moves the layers apart
    pruner.finalize()
    assert sum(zeros_in(stored(model))) == rounded(0.8 * UNITS)


def test_decay_of_the_authors_start_does_not_carry_on_as_momentum_after_the_first_shift():
    model = two_layers()
    pruner = Pruner(model, "str", sparsity=0.5, epochs=4, schedule={"warmup": "1ep", "ramp": "1ep"})
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.01)
    pruner.start_epoch(0)
    for step in range(3):
        train_step(model, pruner, optimizer, step)
    pruner.start_epoch(1)
    before = extras(pruner)
    train_step(model, pruner, optimizer, 3)
    assert all(abs(one - other) < 0.5 for one, other in zip(before, extras(pruner), strict=True))


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_exact_zeros_and_nothing_to_prune_leave_the_thresholds_finite_and_the_rest_kept(share):
    model = two_layers()
    with torch.no_grad():
        model[0].weight.view(-1)[:10] = 0.0
    pruner = Pruner(model, "str", sparsity=share, epochs=2, schedule={"warmup": "0ep", "ramp": "1ep"}, initial=-5.0)
    for epoch in range(2):
        pruner.start_epoch(epoch)
        assert np.isfinite(extras(pruner)).all()
        assert zeros_in(soft(stored(model), extras(pruner))) == [10, 0]
    assert SIZES[0] > 10


def test_more_than_sgd_has_no_momentum_buffer_and_works_too():
    model = two_layers()
    pruner = Pruner(model, "str", sparsity=0.5, epochs=2, schedule={"warmup": "1ep", "ramp": "1ep"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner.attach(optimizer)
    for epoch in range(2):
        pruner.start_epoch(epoch)
        train_step(model, pruner, optimizer, epoch)
    pruner.finalize()
    assert sum(zeros_in(stored(model))) == UNITS // 2
