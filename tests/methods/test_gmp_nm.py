"""Gradual magnitude pruning to N:M against float64: the masks during the ramp, gradients, which weights come back."""

import numpy as np
import pytest
import torch
from nm_by_hand import by_hand, examples, groups, kept_in_groups, loss, net, stored

from pdp import Pruner


def smallest(weight, n, m, pruned):
    """The mask without the `pruned` smallest of all groups' M - N smallest."""
    free = [one for group in groups(weight.shape, m) for one in sorted(group, key=lambda i: abs(weight[i]))[: m - n]]
    mask = np.ones(weight.shape, dtype=bool)
    for one in sorted(free, key=lambda index: abs(weight[index]))[:pruned]:
        mask[one] = False
    return mask


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
def test_a_run_is_that_of_the_formula(n, m):
    model = net()
    schedule = {"name": "cubic", "warmup": "1ep", "ramp": "3ep"}
    pruner = Pruner(model, "gmp", f"{n}:{m}", epochs=5, schedule=schedule)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruner.attach(optimizer)
    full = model[1].weight.numel() // m * (m - n)
    weight, velocity, mask = stored(model), 0.0, np.ones(model[1].weight.shape, dtype=bool)
    back = 0
    for epoch in range(5):
        pruner.start_epoch(epoch)
        count = int(full * (1 - (1 - min(1, epoch / 3)) ** 3) + 0.5)
        if count != int((~mask).sum()):
            before, mask = mask, smallest(weight, n, m, count)
            back += int((mask & ~before).sum())
            velocity = velocity * mask
        assert pruner.layers[0].pruned == count == int((~mask).sum())
        for step in range(2):
            images, targets = examples(2 * epoch + step)
            outputs, gradient = by_hand(model, weight * mask, images, targets)
            result = model(images)
            assert np.allclose(result.detach().double().numpy(), outputs, rtol=1e-3, atol=1e-3)
            loss(result, targets).backward()
            assert np.allclose(model[1].weight.grad.double().numpy(), gradient * mask, rtol=1e-3, atol=1e-3)
            velocity = 0.9 * velocity + gradient * mask
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
            weight = weight - 0.01 * velocity
            assert np.allclose(stored(model), weight, rtol=1e-3, atol=1e-4)
            weight = stored(model)
        # Kept weights that fall below masked ones let those come back when the share next grows.
        with torch.no_grad():
            model[1].weight[0].mul_(torch.from_numpy(np.where(mask[0], 0.01, 1.0)))
        weight = stored(model)
    assert back > 0
    expected = np.where(mask, weight, 0.0)
    pruner.finalize()
    assert np.array_equal(stored(model), expected)
    assert kept_in_groups(model[1].weight, m) == {n} and pruner.share == 1 - n / m
