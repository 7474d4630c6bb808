"""One-shot magnitude pruning: dense training, one cut over all layers, fine-tuning under its mask."""

import numpy as np
from by_hand import (
    UNITS,
    HandSgd,
    close,
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


def test_dense_then_one_cut_then_fine_tuning_as_by_hand():
    model = two_layers()
    pruner = Pruner(model, "oneshot", sparsity=0.7, epochs=4, schedule={"warmup": "0.5"})
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.02)
    weights, hand = stored(model), HandSgd(0.05, 0.9, 0.02)
    keeps = [np.ones_like(w) for w in weights]
    for epoch in range(4):
        pruner.start_epoch(epoch)
        assert pruner.share == (0 if epoch < 2 else rounded(0.7 * UNITS) / UNITS)
        if epoch == 2:
            keeps = without_smallest_of_all([abs(w) for w in weights], rounded(0.7 * UNITS))
            weights = [w * k for w, k in zip(weights, keeps, strict=True)]
            hand.velocity = [v * k for v, k in zip(hand.velocity, keeps, strict=True)]
            assert close(masks(pruner), keeps)
        for step in range(2):
            assert close(stored(model), weights)
            gradients = [g * k for g, k in zip(gradients_of(weights, 2 * epoch + step), keeps, strict=True)]
            assert close(train_step(model, pruner, optimizer, 2 * epoch + step), gradients)
            weights = hand.step(weights, gradients)
    pruner.finalize()
    assert close(stored(model), weights)
    assert sum(zeros_in(stored(model))) == rounded(0.7 * UNITS)
