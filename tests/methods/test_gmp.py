"""Gradual magnitude pruning against Zhu and Gupta's formula and a loop written out in numpy."""

import numpy as np
import pytest
import torch
from by_hand import (
    SIZES,
    UNITS,
    HandSgd,
    close,
    computed_with,
    gradients_of,
    masks,
    rounded,
    sgd,
    stored,
    train_step,
    two_layers,
    without_smallest,
    without_smallest_of_all,
    zeros_in,
)

from pdp import Pruner

RAMP = {"warmup": "1ep", "ramp": "3ep"}


def cubic(epoch, start=1, length=3):
    progress = min(1.0, (epoch - start + 1) / length)
    return 0.0 if epoch < start else 1 - (1 - progress) ** 3


@pytest.mark.parametrize("variant", ["uniform", "moving", "fixed"])
def test_six_epochs_as_by_hand(variant):
    model = two_layers()
    allocation = "uniform" if variant == "uniform" else "global"
    budget = "fixed" if variant == "fixed" else "moving"
    pruner = Pruner(model, "gmp", sparsity=0.6, epochs=6, schedule=RAMP, allocation=allocation, budget=budget)
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.02)
    weights, hand = stored(model), HandSgd(0.05, 0.9, 0.02)
    keeps, finals, before = [np.ones_like(w) for w in weights], None, 0.0
    for epoch in range(6):
        pruner.start_epoch(epoch)
        fraction = cubic(epoch)
        magnitudes = [abs(w) for w in weights]
        if fraction != before:
            if variant == "moving":
                keeps = without_smallest_of_all(magnitudes, rounded(fraction * 0.6 * UNITS))
            else:
                if finals is None:
                    finals = [rounded(0.6 * size) for size in SIZES]
                    if variant == "fixed":
                        finals = zeros_in(without_smallest_of_all(magnitudes, rounded(0.6 * UNITS)))
                pairs = zip(magnitudes, finals, strict=True)
                keeps = [without_smallest(one, rounded(fraction * final)) for one, final in pairs]
            hand.velocity = [v * k for v, k in zip(hand.velocity, keeps, strict=True)]
            before = fraction
            assert close(masks(pruner), keeps)
        for step in range(2):
            effective = [w * k for w, k in zip(weights, keeps, strict=True)]
            assert computed_with(model, effective)
            gradients = [g * k for g, k in zip(gradients_of(effective, 2 * epoch + step), keeps, strict=True)]
            assert close(train_step(model, pruner, optimizer, 2 * epoch + step), gradients)
            weights = hand.step(weights, gradients)
            assert close(stored(model), weights)
    pruner.finalize()
    assert close(stored(model), [w * k for w, k in zip(weights, keeps, strict=True)])
    assert sum(zeros_in(stored(model))) == (rounded(0.6 * UNITS) if allocation == "global" else 12 + 7)


def test_momentum_does_not_move_a_masked_weight():
    model = two_layers()
    pruner = Pruner(model, "gmp", sparsity=0.5, epochs=3, schedule=RAMP | {"ramp": "2ep"})
    optimizer = sgd(model, pruner, lr=0.1, momentum=0.9)
    pruner.start_epoch(0)
    for step in range(3):
        train_step(model, pruner, optimizer, step)
    pruner.start_epoch(1)
    masked, before = [keep == 0 for keep in masks(pruner)], stored(model)
    for step in range(3, 6):
        train_step(model, pruner, optimizer, step)
    for old, new, where in zip(before, stored(model), masked, strict=True):
        assert where.any() and np.array_equal(old[where], new[where]) and not np.any(old[~where] == new[~where])


def test_a_mask_update_takes_back_a_weight_by_its_stored_value_also_where_the_count_stays():
    model = two_layers()
    pruner = Pruner(model, "gmp", sparsity=0.6, epochs=3, schedule={"warmup": "0ep", "ramp": "3ep"})
    sgd(model, pruner, lr=0.1)
    for epoch in range(2):
        pruner.start_epoch(epoch)
    second = pruner.layers[1]
    assert (second.pruned, rounded(cubic(1, 0) * 7)) == (7, 7)  # of 12, at the second update and at the third
    with torch.no_grad():
        out = (~second.state["keep"]).reshape(-1).nonzero()[0]
        second.weight.view(-1)[out] = 9.0
    pruner.step()
    assert not second.state["keep"].view(-1)[out]  # no mask update between two epochs' starts
    pruner.start_epoch(2)
    assert second.pruned == 7 and second.state["keep"].view(-1)[out]
    assert close(masks(pruner)[1:], [without_smallest(abs(stored(model)[1]), 7)])


@pytest.mark.parametrize(
    ("schedule", "moments"),
    [
        ({"warmup": "2it", "ramp": "12it", "unit": "step"}, [2, 5, 8, 11]),
        ({"warmup": "1ep", "ramp": "3ep"}, [4, 8, 12]),
    ],
)
def test_updates_are_update_every_apart_from_the_first_on(schedule, moments):
    model = two_layers()
    pruner = Pruner(model, "gmp", sparsity=0.75, epochs=4, steps_per_epoch=4, schedule=schedule, update_every=3)
    optimizer = sgd(model, pruner, lr=0.01)
    counts, step = [], 0
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for _ in range(4):
            counts.append(pruner.share)
            train_step(model, pruner, optimizer, step)
            step += 1
    changes = [moment for moment in range(1, 16) if counts[moment] != counts[moment - 1]]
    assert changes == moments and counts[-1] == 0.75
    if schedule.get("unit") == "step":
        assert [round(counts[m] * UNITS) for m in moments] == [
            sum(rounded((1 - (1 - min(1, (m - 1) / 12)) ** 3) * 0.75 * size) for size in SIZES) for m in moments
        ]


@pytest.mark.parametrize("every, changes", [(None, [1, 2, 3, 4, 5]), (3, [3, 6])])
def test_a_schedule_in_steps_moves_the_masks_in_the_middle_of_an_epoch(every, changes):
    model = two_layers()
    ramp = {"name": "linear", "warmup": "0it", "ramp": "6it", "unit": "step"}
    pruner = Pruner(model, "gmp", sparsity=0.6, epochs=2, schedule=ramp, steps_per_epoch=8, update_every=every)
    optimizer = sgd(model, pruner, lr=0.05)
    pruner.start_epoch(0)
    seen = [pruner.share]
    for step in range(8):
        train_step(model, pruner, optimizer, step)
        seen.append(pruner.share)
    # Before the first step the schedule is at its first sixth.
    assert seen[0] == pytest.approx(0.1, abs=0.02) and seen[-1] == pytest.approx(0.6, abs=0.02)
    assert [step for step in range(1, 9) if seen[step] != seen[step - 1]] == changes
