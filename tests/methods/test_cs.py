"""Continuous sparsification against its equations in numpy: mask, penalty, temperature, rounds, hard weights."""

import numpy as np
import pytest
from by_hand import (
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
    without_smallest_of_all,
    zeros_in,
)

from pdp import Pruner
from pdp.errors import Refusal

RAMP = {"warmup": "1ep", "ramp": "2ep"}
START, PENALTY, HOTTEST = 0.1, 0.02, 30.0


def sigmoid(values):
    return 1 / (1 + np.exp(np.minimum(-values, 700.0)))


def make(model, **values):
    values = {"initial": START, "penalty": PENALTY, "final_temperature": HOTTEST, "score_lr": 0.2} | values
    return Pruner(model, "cs", schedule=RAMP, **values)


@pytest.mark.parametrize("rounds", [1, 2])
def test_six_epochs_as_by_hand_and_the_share_that_follows(rounds):
    model = two_layers()
    pruner = make(model, epochs=6, rounds=rounds)
    optimizer = sgd(model, pruner, lr=0.02, momentum=0.9, decay=0.05)
    weights = stored(model)
    scores = [np.full_like(w, START) for w in weights]
    of_weights, of_scores = HandSgd(0.02, 0.9, 0.05), HandSgd(0.2, 0.9, 0.0)
    length, scale, beta = 6 // rounds, 1 / sigmoid(START), 1.0
    for epoch in range(6):
        pruner.start_epoch(epoch)
        if epoch and epoch % length == 0:
            scores = [np.minimum(beta * s, START) for s in scores]
        beta = HOTTEST ** ((epoch % length) / (length - 1))
        for step in range(2):
            hot = [sigmoid(beta * s) for s in scores]
            effective = [w * h * scale for w, h in zip(weights, hot, strict=True)]
            assert computed_with(model, effective)
            assert pruner.penalty().item() == pytest.approx(PENALTY * scale * sum(h.sum() for h in hot))
            upstream = gradients_of(effective, 2 * epoch + step)
            gradients = [g * h * scale for g, h in zip(upstream, hot, strict=True)]
            of_s = [
                (g * w + PENALTY) * scale * beta * h * (1 - h) for g, w, h in zip(upstream, weights, hot, strict=True)
            ]
            assert close(train_step(model, pruner, optimizer, 2 * epoch + step), gradients)
            weights, scores = of_weights.step(weights, gradients), of_scores.step(scores, of_s)
            assert close(stored(model), weights) and close(extras(pruner), scores)
    pruned = sum(int((s <= 0).sum()) for s in scores)
    assert 0 < pruned < UNITS
    with pruner.hard():
        assert pruner.share == pruned / UNITS
    pruner.finalize()
    assert close(stored(model), [w * (s > 0) * scale for w, s in zip(weights, scores, strict=True)])
    assert sum(zeros_in(stored(model))) == pruned and not pruner.at_target


@pytest.mark.parametrize("controller", ["none", "cubic"])
def test_a_target_is_met_exactly_by_one_shift_of_all_scores(controller):
    model = two_layers()
    pruner = make(model, sparsity=0.8, epochs=5, controller=controller)
    optimizer = sgd(model, pruner, lr=0.02)
    for epoch in range(5):
        before = extras(pruner)
        pruner.start_epoch(epoch)
        after = extras(pruner)
        shift = [one - other for one, other in zip(before, after, strict=True)]
        assert np.allclose(np.concatenate([one.reshape(-1) for one in shift]), shift[0][0, 0])
        if controller == "cubic" and epoch:
            share = 0.8 * (1 - (1 - min(1, epoch / 2)) ** 3)
            if epoch > 1 or before[0].std() > 0:
                assert sum(int((s <= 0).sum()) for s in after) == rounded(share * UNITS)
        elif controller == "none":
            assert close(before, after)
        for step in range(3):
            train_step(model, pruner, optimizer, 3 * epoch + step)
    expected = without_smallest_of_all(extras(pruner), rounded(0.8 * UNITS))
    weights = stored(model)
    pruner.finalize()
    assert close(stored(model), [w * k / sigmoid(START) for w, k in zip(weights, expected, strict=True)])
    assert sum(zeros_in(stored(model))) == rounded(0.8 * UNITS)


def test_the_temperature_of_the_authors_85_epochs_and_three_rounds():
    pruner = Pruner(two_layers(), "cs", epochs=255, rounds=3)
    betas = []
    for epoch in range(255):
        pruner.start_epoch(epoch)
        betas.append(pruner.method.beta)
    assert betas == pytest.approx([200 ** ((epoch % 85) / 84) for epoch in range(255)])
    assert (betas[0], betas[84], betas[85], betas[254]) == pytest.approx((1, 200, 1, 200))


def test_more_rounds_than_epochs_are_refused():
    with pytest.raises(Refusal, match="rounds=3"):
        make(two_layers(), epochs=4, rounds=3) and Pruner(
            two_layers(), "cs", epochs=2, rounds=3, schedule={"warmup": 0, "ramp": "1ep"}
        )
