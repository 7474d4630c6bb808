"""OptG against its equations in numpy: scores, their learning rate, the cuts, the sigmoid schedule."""

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
    """sigmoid(e - E/2), steeper in runs under 12 epochs; 0 at the start, 1 in the run's last twentieth."""
    half = max(6, epochs / 2)
    value, lowest = (1 / (1 + math.exp(half - 2 * half * at / epochs)) for at in (epoch, 0))
    value = (value - lowest) / (1 - 2 * lowest)
    return 1.0 if value > 1 - 1e-6 or epoch >= 0.95 * epochs else 0.0 if value < 1e-6 else value


@pytest.mark.parametrize("cuts", ["once an epoch", "every other step"])
def test_twenty_epochs_as_by_hand(cuts):
    """Without the steps of an epoch there is one cut in each; with them as many as update_every says."""
    often = {"steps_per_epoch": 3, "update_every": "2it"} if cuts == "every other step" else {}
    model = two_layers()
    pruner = Pruner(model, "optg", sparsity=0.8, epochs=20, **often)
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.02)
    weights, scores = stored(model), [np.zeros_like(w) for w in stored(model)]
    of_weights, of_scores = HandSgd(0.05, 0.9, 0.02), HandSgd(0.05, 0.9, 0.0)
    seen = []
    for number in range(60):
        epoch = number // 3
        if number % 3 == 0:
            pruner.start_epoch(epoch)
        if number % 2 == 0 if often else number % 3 == 0:
            level = rate(number / 3, 20)
            keeps = without_smallest_of_all(scores, rounded(level * 0.8 * UNITS))
            seen.append(sum(zeros_in(keeps)))
        assert close(masks(pruner), keeps)  # it holds until the next
        effective = [w * k for w, k in zip(weights, keeps, strict=True)]
        assert computed_with(model, effective)
        upstream = gradients_of(effective, number)
        gradients = [g * k for g, k in zip(upstream, keeps, strict=True)]
        of_s = [g * w for g, w in zip(upstream, weights, strict=True)]
        assert close(train_step(model, pruner, optimizer, number), gradients)
        assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
        weights = of_weights.step(weights, gradients)
        # The authors' sigmoid is never zero: what is dense yet ranks its scores already.
        scores = of_scores.step(scores, of_s, lr=0.05 * max(level, 1e-6))
        assert close(stored(model), weights) and close(extras(pruner), scores, atol=1e-12)
    assert seen[0] == 0 and seen[-1] == rounded(0.8 * UNITS) and seen == sorted(seen)
    with torch.no_grad():  # as if the last steps had turned the order round: what ships was trained
        for extra in pruner.method.extras.values():
            extra.neg_()
    pruner.finalize()
    assert close(stored(model), [w * k for w, k in zip(weights, keeps, strict=True)])
    assert sum(zeros_in(stored(model))) == rounded(0.8 * UNITS)


@pytest.mark.parametrize(("allocation", "among"), [("global", [2, 0]), ("uniform", [6, 0])])
def test_scores_that_have_learned_nothing_prune_nothing(allocation, among):
    """The authors prune what lies under the cut: nothing among equals. The end prunes what it must."""
    model = two_layers()
    pruner = Pruner(model, "optg", sparsity=0.3, epochs=4, allocation=allocation, schedule={"name": "constant"})
    sgd(model, pruner, lr=0.05)
    pruner.start_epoch(0)
    assert zeros_in(masks(pruner)) == [0, 0] and pruner.share == 0
    with torch.no_grad():  # -2, -1, 0, ... beside twelve zeros: a cut over both lies at zero
        pruner.method.extras["0"].copy_(torch.arange(20.0).reshape(4, 5) - 2)
    pruner.start_epoch(1)
    assert zeros_in(masks(pruner)) == among
    pruner.finalize()
    assert sum(zeros_in(stored(model))) == 10  # 0.3 of 32, and of 20 and 12


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


@pytest.mark.parametrize("epochs", [100, 180, 20, 12, 3])
def test_the_sigmoid_at_its_boundaries(epochs):
    schedule = make_schedule("sigmoid", epochs, unit="step", steps_per_epoch=20)
    fractions = [schedule.fraction(step, schedule.start) for step in range(20 * epochs)]
    assert fractions == pytest.approx([rate(step / 20, epochs) for step in range(20 * epochs)], abs=1e-12)
    assert (fractions[0], fractions[10 * epochs], fractions[-1]) == (0.0, 0.5, 1.0)
    assert fractions == sorted(fractions)
    for epoch in range(epochs):
        # The authors' own, per epoch, at any length but the shortest and the very end.
        if epochs >= 12 and epoch < 0.95 * epochs:
            own = 1 / (1 + math.exp(epochs / 2 - epoch))
            assert fractions[20 * epoch] == pytest.approx(own, abs=3e-3 if epochs < 20 else 1e-4)
