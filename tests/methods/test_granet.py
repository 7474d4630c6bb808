"""GraNet against a loop in numpy: the ERK start, the global level, the exchange, the cosine of its share."""

import math

import numpy as np
import pytest
from by_hand import (
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
from pdp.errors import Refusal

# (4, 5) and (3, 4) at density 1/2: eps * (9 + 7) = 16, so 9 and 7 weights are kept.
KEPT = [9, 7]


def exchange(weights, keep, gradient, share):
    kept = int(keep.sum())
    dropped = min(math.ceil(share * kept), kept - 1)
    staying = keep * without_smallest(np.where(keep > 0, abs(weights), np.inf), dropped)
    wanted = np.where(staying > 0, -np.inf, abs(gradient))
    return staying + without_smallest(wanted, wanted.size - dropped)


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize("every", [1, 2])
def test_twenty_steps_as_by_hand(unit, every):
    model = two_layers()
    ramp = {"warmup": 0, "ramp": "10it" if unit == "step" else "2ep", "unit": unit}
    pruner = Pruner(
        model, "granet", sparsity=0.75, epochs=4, steps_per_epoch=5, schedule=ramp, update_every=f"{every}it"
    )
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.02)
    dense, hand, levels = stored(model), HandSgd(0.05, 0.9, 0.02), []
    pruner.start_epoch(0)
    keeps = masks(pruner)
    assert [int(k.sum()) for k in keeps] == KEPT
    weights = [w * k for w, k in zip(dense, keeps, strict=True)]
    for step in range(20):
        if step and step % 5 == 0:
            pruner.start_epoch(step // 5)
        assert close(stored(model), weights) and close(masks(pruner), keeps) and computed_with(model, weights)
        gradients = gradients_of(weights, step)
        assert close(train_step(model, pruner, optimizer, step), gradients)
        weights = hand.step(weights, [g * k for g, k in zip(gradients, keeps, strict=True)])
        taken = step + 1
        if taken % every:
            continue
        moment, length = (taken, 10) if unit == "step" else (step // 5, 2)
        fraction = 1 - (1 - min(1, (moment + 1) / length)) ** 3
        pruned = rounded((0.5 + 0.25 * fraction) * UNITS)
        if pruned != sum(zeros_in(keeps)):
            keeps = without_smallest_of_all([abs(w) for w in weights], pruned)
            weights = [w * k for w, k in zip(weights, keeps, strict=True)]
            hand.velocity = [v * k for v, k in zip(hand.velocity, keeps, strict=True)]
        levels.append(pruned)
        if taken < 20:
            share = 0.005 + (0.5 - 0.005) * 0.5 * (1 + math.cos(math.pi * taken / 20))
            keeps = [exchange(w, k, g, share) for w, k, g in zip(weights, keeps, gradients, strict=True)]
            weights = [w * k for w, k in zip(weights, keeps, strict=True)]
            hand.velocity = [v * k for v, k in zip(hand.velocity, keeps, strict=True)]
    assert levels == sorted(levels) and levels[-1] == 24 and levels[len(levels) // 2] == 24
    pruner.finalize()
    assert close(stored(model), weights) and sum(zeros_in(keeps)) == 24 == round(pruner.share * UNITS)


@pytest.mark.parametrize(("density", "share", "first"), [(0.5, 0.9, 16), (1.0, 0.9, 0), (0.5, 0.25, 8)])
def test_the_first_level_is_the_initial_density_or_the_target(density, share, first):
    model = two_layers()
    pruner = Pruner(
        model,
        "granet",
        sparsity=share,
        epochs=2,
        steps_per_epoch=4,
        initial_density=density,
        schedule={"warmup": 0, "ramp": "1ep"},
    )
    pruner.start_epoch(0)
    assert sum(zeros_in(masks(pruner))) == first == round(pruner.share * UNITS)
    if density == 1.0:
        assert computed_with(model, stored(model))


def test_after_the_ramp_no_layers_count_moves_though_new_weights_are_zeros_too():
    model = two_layers()
    pruner = Pruner(
        model,
        "granet",
        sparsity=0.5,
        epochs=4,
        steps_per_epoch=2,
        schedule={"warmup": 0, "ramp": "1ep"},
        update_every="1it",
    )
    optimizer = sgd(model, pruner, lr=0.0)  # what grows stays at zero, as under a unit that never fires
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for step in range(2):
            train_step(model, pruner, optimizer, 2 * epoch + step)
            assert [int(k.sum()) for k in masks(pruner)] == KEPT


def test_budgets_of_a_file_are_refused(tmp_path):
    (tmp_path / "shares.csv").write_text("layer,share\n0,0.5\n2,0.5\n")
    for method, options in (("granet", {"update_every": "1it"}), ("str", {}), ("cs", {})):
        with pytest.raises(Refusal, match="allocation=file"):
            Pruner(
                two_layers(), method, epochs=2, steps_per_epoch=4, schedule={"warmup": 0, "ramp": "1ep"},
                allocation="file", allocation_path=tmp_path / "shares.csv", **options,
            )  # fmt: skip
