"""LBC against float64: scores of all candidates of all groups, their elimination, how many remain at each epoch."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from nm_by_hand import by_hand, examples, groups, kept_in_groups, loss, net, stored
from torch import nn

from pdp import Pruner

RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.02


def left_at(epoch, candidates, start, length):
    """1 + ceil((C - 1) (1 - (e - t_i) / (t_f - t_i))^3), the authors' own count: all of them while e is t_i."""
    if epoch < start:
        return candidates
    progress = min(Fraction(1), Fraction(epoch - start, length))
    return 1 + math.ceil((candidates - 1) * (1 - progress) ** 3)


class ByHand:
    """Scores and living candidates of every group, in plain Python."""

    def __init__(self, shape, n, m):
        self.groups = groups(shape, m)
        self.patterns = list(itertools.combinations(range(m), n))
        start = 1 / math.comb(m - 1, n - 1)
        self.scores = [[start] * len(self.patterns) for _ in self.groups]
        self.velocity = [[0.0] * len(self.patterns) for _ in self.groups]
        self.alive = [set(range(len(self.patterns))) for _ in self.groups]

    def mask(self, shape):
        mask = np.zeros(shape)
        for group, alive in zip(self.groups, self.alive, strict=True):
            for candidate in alive:
                for index in self.patterns[candidate]:
                    mask[group[index]] = 1.0
        return mask

    def gradients(self, weight, gradient):
        """Of a living candidate the sum of W * dL/dW~ over what it covers."""
        return [
            [
                sum(weight[group[index]] * gradient[group[index]] for index in pattern) if candidate in alive else 0.0
                for candidate, pattern in enumerate(self.patterns)
            ]
            for group, alive in zip(self.groups, self.alive, strict=True)
        ]

    def step(self, gradients):
        for scores, velocity, ones in zip(self.scores, self.velocity, gradients, strict=True):
            for index, one in enumerate(ones):
                velocity[index] = MOMENTUM * velocity[index] + one + WEIGHT_DECAY * scores[index]
                scores[index] -= RATE * velocity[index]

    def put_out(self, left):
        for scores, alive in zip(self.scores, self.alive, strict=True):
            while len(alive) > left:
                alive.remove(min(alive, key=lambda one: scores[one]))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4)])
def test_whole_steps_are_those_of_the_formula(n, m):
    model = net()
    shape = tuple(model[1].weight.shape)
    schedule = {"name": "cubic", "warmup": "1ep", "ramp": "4ep"}
    pruner = Pruner(model, "lbc", f"{n}:{m}", epochs=6, schedule=schedule)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    pruner.attach(optimizer)
    (group,) = [one for one in optimizer.param_groups if one.get("name") == "scores"]
    assert group["lr"] == RATE and group["weight_decay"] == WEIGHT_DECAY
    hand, weight, velocity = ByHand(shape, n, m), stored(model), 0.0
    extra, layer = pruner.method.extras["1"], pruner.layers[0]
    seen = []
    for epoch in range(6):
        pruner.start_epoch(epoch)
        left = left_at(epoch, math.comb(m, n), 1, 4)
        hand.put_out(left)
        seen.append(left)
        for step in range(2):
            mask = hand.mask(shape)
            assert np.array_equal(layer.state["keep"].numpy(), mask != 0)
            assert layer.pruned == int((mask == 0).sum())
            images, targets = examples(2 * epoch + step)
            outputs, gradient = by_hand(model, weight * mask, images, targets)
            result = model(images)
            assert np.allclose(result.detach().double().numpy(), outputs, rtol=1e-3, atol=1e-3)
            loss(result, targets).backward()
            pruner.after_backward()
            assert np.allclose(model[1].weight.grad.double().numpy(), gradient * mask, rtol=1e-3, atol=1e-3)
            if left > 1:
                own = np.array(hand.gradients(weight, gradient))
                assert np.allclose(extra.grad.double().numpy().reshape(own.shape), own, rtol=1e-3, atol=1e-3)
                hand.step(own.tolist())
            else:
                assert extra.grad is None  # frozen
            velocity = MOMENTUM * velocity + gradient * mask + WEIGHT_DECAY * weight
            weight = weight - RATE * velocity
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
            assert np.allclose(stored(model), weight, rtol=1e-3, atol=1e-4)
            scores = extra.detach().double().numpy().reshape(len(hand.groups), -1)
            assert np.allclose(scores, hand.scores, rtol=1e-3, atol=1e-4)
    assert seen[0] == math.comb(m, n) and seen[-1] == 1 and seen == sorted(seen, reverse=True)
    expected = np.where(hand.mask(shape) != 0, stored(model), 0.0)
    pruner.finalize()
    assert np.array_equal(stored(model), expected)
    assert kept_in_groups(model[1].weight, m) == {n}
    assert pruner.share == 1 - n / m


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8), (1, 16)])
@pytest.mark.parametrize(("start", "length", "epochs"), [(0, 60, 120), (5, 10, 20), (0, 1, 2)])
def test_candidates_left_at_every_epoch(n, m, start, length, epochs):
    model = nn.Sequential(nn.Linear(16, 2))
    schedule = {"name": "cubic", "warmup": f"{start}ep", "ramp": f"{length}ep"}
    pruner = Pruner(model, "lbc", f"{n}:{m}", epochs=epochs, schedule=schedule)
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    alive = pruner.layers[0].state["alive"]
    before = torch.ones_like(alive)
    with torch.no_grad():
        pruner.method.extras["0"].normal_()
    for epoch in range(epochs):
        pruner.start_epoch(epoch)
        expected = left_at(epoch, math.comb(m, n), start, length)
        assert set(alive.sum(-1).reshape(-1).tolist()) == {expected}
        assert not (alive & ~before).any()  # for good
        before = alive.clone()
        with torch.no_grad():
            pruner.method.extras["0"].normal_()
    assert left_at(start, math.comb(m, n), start, length) == math.comb(m, n)  # nothing untrained is put out
    assert left_at(start + length, math.comb(m, n), start, length) == 1


def test_finalize_cuts_what_the_ramp_has_left():
    model = net()
    pruner = Pruner(model, "lbc", "2:4", epochs=10, schedule={"name": "cubic", "warmup": "1ep", "ramp": "9ep"})
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    pruner.start_epoch(0)
    with torch.no_grad():
        scores = pruner.method.extras["1"].normal_().clone()
    with pytest.warns(UserWarning, match="untrained"):
        pruner.finalize()
    best = scores.reshape(-1, 6).argmax(-1).tolist()
    patterns = list(itertools.combinations(range(4), 2))
    kept = pruner.layers[0].state["keep"].permute(0, 2, 3, 1).reshape(-1, 4).tolist()
    assert [tuple(index for index in range(4) if row[index]) for row in kept] == [patterns[one] for one in best]
    assert kept_in_groups(model[1].weight, 4) == {2}
