"""RigL against a loop in numpy: ERK from the start, drop and grow before a step, momentum of grown weights."""

import math

import numpy as np
import pytest
import torch
from by_hand import (
    HandSgd,
    close,
    computed_with,
    gradients_of,
    masks,
    sgd,
    stored,
    train_step,
    two_layers,
    without_smallest,
    zeros_in,
)
from torch import nn

from pdp import Pruner

# (4, 5) and (3, 4) at density 1/2: eps * (9 + 7) = 16, so 9 and 7 weights are kept.
KEPT = [9, 7]


def exchange(weights, keep, gradient, dropped):
    """Drops the smallest kept weights, grows as many where |gradient| is largest among all then out."""
    active = np.where(keep > 0, abs(weights), np.inf)
    staying = keep * without_smallest(active, dropped)
    wanted = np.where(staying > 0, -np.inf, abs(gradient))
    return staying + without_smallest(wanted, wanted.size - dropped)


@pytest.mark.parametrize("anneal", ["constant", "cosine"])
def test_twenty_steps_as_by_hand(anneal):
    model = two_layers()
    pruner = Pruner(
        model,
        "rigl",
        sparsity=0.5,
        epochs=4,
        steps_per_epoch=5,
        update_every="4it",
        end="16it",
        drop_fraction=0.4,
        anneal=anneal,
    )
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.02)
    dense, hand, updates = stored(model), HandSgd(0.05, 0.9, 0.02), []
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
        if step in (0, 4, 8, 12):  # every 4 steps from the first on, until step 16
            fraction = 0.4 * (0.5 * (1 + math.cos(math.pi * step / 16)) if anneal == "cosine" else 1)
            before = keeps
            keeps = [
                exchange(w, k, g, int(fraction * kept))
                for w, k, g, kept in zip(weights, keeps, gradients, KEPT, strict=True)
            ]
            updates.append(sum(int(abs(k - b).sum()) for k, b in zip(keeps, before, strict=True)))
            weights = [w * k for w, k in zip(weights, keeps, strict=True)]
            if hand.velocity is not None:
                hand.velocity = [v * k for v, k in zip(hand.velocity, keeps, strict=True)]
        # The update takes no step's place: the step is taken with what the new mask lets through.
        weights = hand.step(weights, [g * k for g, k in zip(gradients, keeps, strict=True)])
    assert sum(updates) > 0
    pruner.finalize()
    assert close(stored(model), weights) and zeros_in(stored(model)) == [20 - 9, 12 - 7]


@pytest.mark.parametrize("regrown", [True, False])
def test_what_is_dropped_and_regrown_keeps_value_and_momentum_what_is_new_starts_at_zero(regrown):
    model = nn.Sequential(nn.Linear(6, 1, bias=False))
    pruner = Pruner(
        model, "rigl", sparsity=0.5, epochs=9, steps_per_epoch=1, update_every="1it", end="9it", drop_fraction=0.34
    )
    optimizer = sgd(model, pruner, lr=0.0, momentum=0.9)
    pruner.start_epoch(0)
    weight = model[0].weight
    model(torch.ones(1, 6)).sum().backward()
    pruner.after_backward()
    keep = pruner.layers[0].state["keep"].clone()  # after the update of step 0
    optimizer.step()
    pruner.step()
    kept, out = keep.view(-1).nonzero().view(-1), (~keep).view(-1).nonzero().view(-1)
    with torch.no_grad():
        weight.view(-1)[kept] = torch.tensor([0.1, 0.5, -0.9])
    buffer = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(buffer != 0, keep)
    model(torch.ones(1, 6)).sum().backward()
    weight.grad = torch.full((1, 6), 0.01)
    wanted = kept[0] if regrown else out[1]
    weight.grad[0, wanted] = -5.0
    pruner.after_backward()
    now = pruner.layers[0].state["keep"].view(-1)
    assert torch.equal(weight.grad.view(-1) != 0, now)  # the optimizer steps under the new mask
    assert now.sum() == 3 and now[wanted]
    if regrown:
        assert torch.equal(now, keep.view(-1)) and weight[0, wanted] == 0.1 and buffer[0, wanted] == 1.0
    else:
        assert not now[kept[0]] and weight[0, kept[0]] == 0 == buffer[0, kept[0]]
        assert weight[0, wanted] == 0 == buffer[0, wanted]
    assert weight[0, kept[1]] == 0.5 and buffer[0, kept[1]] == 1.0


def test_a_schedule_that_prunes_more_goes_on_from_the_mask_that_was_learned():
    model = two_layers()
    pruner = Pruner(
        model,
        "rigl",
        sparsity=0.6,
        epochs=3,
        steps_per_epoch=3,
        update_every="2it",
        schedule={"name": "cubic", "warmup": "0ep", "ramp": "2ep"},
    )
    optimizer = sgd(model, pruner, lr=0.05)
    before = [np.ones((4, 5)), np.ones((3, 4))]
    for epoch in range(3):
        weights = stored(model)
        pruner.start_epoch(epoch)
        keeps = masks(pruner)
        if epoch:
            assert close(
                keeps, [without_smallest(abs(w), int((k == 0).sum())) for w, k in zip(weights, keeps, strict=True)]
            )
        assert all((k <= b).all() for k, b in zip(keeps, before, strict=True))
        for step in range(3):
            train_step(model, pruner, optimizer, 3 * epoch + step)
        before = masks(pruner)
