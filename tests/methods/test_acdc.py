"""AC/DC against its published phases and a loop written out in numpy."""

import numpy as np
import pytest
from by_hand import (
    UNITS,
    HandSgd,
    close,
    computed_with,
    gradients_of,
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

# Of the authors' runs: dense 0-9, pruned at 10, 20, ... 70 and restored at 15, 25, ... 75, pruned for good at 85.
PRUNED_OF_100 = {start + more for start in range(10, 80, 10) for more in range(5)} | set(range(85, 100))


def test_the_phases_of_100_epochs_and_of_200():
    schedule = make_schedule("alternating", 100)
    assert {e for e in range(100) if schedule.fraction(e, 0) == 1} == PRUNED_OF_100
    assert {schedule.fraction(e, 0) for e in range(100)} == {0.0, 1.0}
    twice = make_schedule("alternating", 200)
    pruned = {e for start in range(20, 160, 20) for e in range(start, start + 10)} | set(range(170, 200))
    assert {e for e in range(200) if twice.fraction(e, 0) == 1} == pruned


def test_in_steps_a_short_run_has_every_phase():
    schedule = make_schedule("alternating", 2, unit="step", steps_per_epoch=50)
    assert {s for s in range(100) if schedule.fraction(s, 0) == 1} == PRUNED_OF_100


@pytest.mark.parametrize("reset", [True, False])
def test_twenty_epochs_as_by_hand(reset):
    model = two_layers()
    pruner = Pruner(model, "acdc", sparsity=0.7, epochs=20, reset_momentum=reset)
    optimizer = sgd(model, pruner, lr=0.03, momentum=0.9, decay=0.02)
    weights, hand = stored(model), HandSgd(0.03, 0.9, 0.02)
    keeps, sparse, counts, different = [np.ones_like(w) for w in weights], False, [], []
    for epoch in range(20):
        pruner.start_epoch(epoch)
        if (5 * epoch in PRUNED_OF_100) != sparse:
            sparse = not sparse
            if sparse:
                keeps = without_smallest_of_all([abs(w) for w in weights], rounded(0.7 * UNITS))
                weights = [w * k for w, k in zip(weights, keeps, strict=True)]
                hand.velocity = [v * k for v, k in zip(hand.velocity, keeps, strict=True)]
                different.append(tuple(np.concatenate([k.reshape(-1) for k in keeps])))
            else:
                keeps = [np.ones_like(w) for w in weights]
                if reset:
                    hand.velocity = [np.zeros_like(v) for v in hand.velocity]
            assert close(stored(model), weights)
        for step in range(2):
            assert computed_with(model, weights)
            counts.append(sum(zeros_in(weights)))
            gradients = [g * k for g, k in zip(gradients_of(weights, 2 * epoch + step), keeps, strict=True)]
            assert close(train_step(model, pruner, optimizer, 2 * epoch + step), gradients)
            weights = hand.step(weights, gradients)
            assert close(stored(model), weights)
    pruned = rounded(0.7 * UNITS)
    assert counts[2 * 7] == pruned  # the first step of a dense phase: what was pruned begins at zero
    assert counts[2 * 7 + 1] < pruned and counts[2 * 16] < pruned and counts[-1] == pruned
    assert len(set(different)) > 1  # a new mask for each sparse phase
    pruner.finalize()
    assert close(stored(model), weights) and sum(zeros_in(stored(model))) == pruned
