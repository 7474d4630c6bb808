"""DNW against a loop in numpy: the largest weights of each layer at every step, gradients to all."""

import numpy as np
import pytest
from by_hand import (
    SIZES,
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
    zeros_in,
)

from pdp import Pruner


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_steps_as_by_hand_from_the_first_on(share):
    model = two_layers()
    pruner = Pruner(model, "dnw", sparsity=share, epochs=4)
    optimizer = sgd(model, pruner, lr=0.1, momentum=0.9, decay=0.02)
    weights, hand, seen = stored(model), HandSgd(0.1, 0.9, 0.02), set()
    counts = [rounded(share * size) for size in SIZES]
    for step in range(8):
        if step % 2 == 0:
            pruner.start_epoch(step // 2)
        keeps = [without_smallest(abs(w), count) for w, count in zip(weights, counts, strict=True)]
        assert close(masks(pruner), keeps)
        seen.add(tuple(keeps[0].reshape(-1)))
        effective = [w * k for w, k in zip(weights, keeps, strict=True)]
        assert computed_with(model, effective)
        gradients = gradients_of(effective, step)  # of pruned weights too
        assert close(train_step(model, pruner, optimizer, step), gradients)
        weights = hand.step(weights, gradients)
        assert close(stored(model), weights) and zeros_in(stored(model)) == [0, 0]
    assert len(seen) > 1  # pruned weights swap in
    keeps = [without_smallest(abs(w), count) for w, count in zip(weights, counts, strict=True)]
    pruner.finalize()
    assert zeros_in(stored(model)) == counts
    assert close(stored(model), [w * k for w, k in zip(weights, keeps, strict=True)])
    assert np.isfinite(stored(model)[0]).all()
