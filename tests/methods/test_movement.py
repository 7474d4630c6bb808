"""Movement pruning against its equations in numpy: hard by rank, soft by threshold and penalty."""

import math

import numpy as np
import pytest
from by_hand import (
    SIZES,
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
    without_smallest,
    without_smallest_of_all,
    zeros_in,
)

from pdp import Pruner

RAMP = {"warmup": "1ep", "ramp": "3ep"}


def cubic(epoch):
    return 0.0 if epoch < 1 else 1 - (1 - min(1, epoch / 3)) ** 3


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_hard_as_by_hand(allocation):
    model = two_layers()
    pruner = Pruner(model, "movement", sparsity=0.7, epochs=5, schedule=RAMP, score_lr=0.3, allocation=allocation)
    optimizer = sgd(model, pruner, lr=0.02, momentum=0.9, decay=0.05)
    weights, scores = stored(model), [np.zeros_like(w) for w in stored(model)]
    of_weights, of_scores = HandSgd(0.02, 0.9, 0.05), HandSgd(0.3, 0.9, 0.0)
    for epoch in range(5):
        pruner.start_epoch(epoch)
        if allocation == "uniform":
            counts = [rounded(cubic(epoch) * rounded(0.7 * size)) for size in SIZES]
        else:
            counts = zeros_in(without_smallest_of_all(scores, rounded(cubic(epoch) * 0.7 * UNITS)))
        for step in range(3):
            keeps = [without_smallest(s, count) for s, count in zip(scores, counts, strict=True)]
            assert close(masks(pruner), keeps)
            effective = [w * k for w, k in zip(weights, keeps, strict=True)]
            assert computed_with(model, effective) and pruner.penalty() is None
            upstream = gradients_of(effective, 3 * epoch + step)
            gradients = [g * k for g, k in zip(upstream, keeps, strict=True)]
            of_s = [g * w for g, w in zip(upstream, weights, strict=True)]
            assert close(train_step(model, pruner, optimizer, 3 * epoch + step), gradients)
            weights, scores = of_weights.step(weights, gradients), of_scores.step(scores, of_s)
            assert close(stored(model), weights) and close(extras(pruner), scores)
    if allocation == "global":
        counts = zeros_in(without_smallest_of_all(scores, rounded(0.7 * UNITS)))
    keeps = [without_smallest(s, count) for s, count in zip(scores, counts, strict=True)]
    pruner.finalize()
    assert close(stored(model), [w * k for w, k in zip(weights, keeps, strict=True)])
    assert zeros_in(stored(model)) == counts
    assert sum(counts) == (14 + 8 if allocation == "uniform" else rounded(0.7 * UNITS))


@pytest.mark.parametrize("target", [None, 0.4])
def test_soft_as_by_hand(target):
    model = two_layers()
    pruner = Pruner(
        model,
        "movement",
        sparsity=target,
        epochs=5,
        schedule=RAMP,
        variant="soft",
        score_lr=0.3,
        threshold=0.5,
        penalty=2.0,
    )
    optimizer = sgd(model, pruner, lr=0.02, momentum=0.9)
    weights, scores = stored(model), [np.zeros_like(w) for w in stored(model)]
    of_weights, of_scores = HandSgd(0.02, 0.9), HandSgd(0.3, 0.9)

    def kept(fraction):
        under = [int((sigmoid(s) <= 0.5 * fraction).sum()) if fraction else 0 for s in scores]
        # At least 0.5 % of every tensor, here one weight.
        return [
            without_smallest(s, min(u, s.size - math.ceil(0.005 * s.size))) for s, u in zip(scores, under, strict=True)
        ]

    for epoch in range(5):
        pruner.start_epoch(epoch)
        fraction = cubic(epoch)
        for step in range(3):
            keeps = kept(fraction)
            assert close(masks(pruner), keeps) and pruner.share == sum(zeros_in(keeps)) / UNITS
            effective = [w * k for w, k in zip(weights, keeps, strict=True)]
            assert computed_with(model, effective)
            mean = sum(sigmoid(s).mean() for s in scores) / 2
            penalty = pruner.penalty()
            assert (0.0 if penalty is None else penalty.item()) == pytest.approx(2.0 * fraction * mean)
            upstream = gradients_of(effective, 3 * epoch + step)
            gradients = [g * k for g, k in zip(upstream, keeps, strict=True)]
            of_s = [
                g * w + 2.0 * fraction * sigmoid(s) * (1 - sigmoid(s)) / (2 * s.size)
                for g, w, s in zip(upstream, weights, scores, strict=True)
            ]
            assert close(train_step(model, pruner, optimizer, 3 * epoch + step), gradients)
            weights, scores = of_weights.step(weights, gradients), of_scores.step(scores, of_s)
            assert close(stored(model), weights) and close(extras(pruner), scores)
    keeps = kept(1.0)
    reached = sum(zeros_in(keeps))
    assert 0 < reached < UNITS and pruner.share == reached / UNITS
    if target is not None:
        assert reached != rounded(target * UNITS)
        keeps = without_smallest_of_all(scores, rounded(target * UNITS))
    pruner.finalize()
    assert close(stored(model), [w * k for w, k in zip(weights, keeps, strict=True)])
    assert sum(zeros_in(stored(model))) == (reached if target is None else rounded(target * UNITS))


def test_soft_keeps_one_weight_of_every_tensor_under_any_threshold():
    model = two_layers()
    pruner = Pruner(model, "movement", epochs=1, schedule={"warmup": 0, "ramp": "1ep"}, variant="soft", threshold=1.0)
    sgd(model, pruner, lr=0.1)
    pruner.start_epoch(0)
    assert [int(k.sum()) for k in masks(pruner)] == [1, 1]
