"""ASP against float64: the best pattern of each group, masked gradients and weights from then on, its layers."""

import numpy as np
import pytest
import torch
from nm_by_hand import by_hand, examples, kept_in_groups, largest, loss, net, stored
from torch import nn
from transformers.pytorch_utils import Conv1D

from pdp import Pruner
from pdp.errors import Refusal

RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.02


def test_whole_steps_are_those_of_the_formula():
    """One epoch dense, then the cut: gradients times the mask before, weights times the mask after each step."""
    model = net(16, 8)
    pruner = Pruner(model, "asp", "2:4", epochs=3, schedule={"name": "oneshot", "warmup": "1ep"})
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    pruner.attach(optimizer)
    weight, velocity = stored(model), np.zeros(model[1].weight.shape)
    mask = np.ones(weight.shape)
    for step in range(9):
        if step % 3 == 0:
            pruner.start_epoch(step // 3)
        if step == 3:
            mask = largest(weight, 2, 4)
            weight, velocity = weight * mask, velocity * mask
            assert np.array_equal(stored(model) != 0, mask)
            assert np.array_equal(optimizer.state[model[1].weight]["momentum_buffer"].numpy() != 0, mask)
        images, targets = examples(step, 8)
        outputs, gradient = by_hand(model, weight, images, targets)
        result = model(images)
        assert np.allclose(result.detach().double().numpy(), outputs, rtol=1e-3, atol=1e-3)
        loss(result, targets).backward()
        pruner.after_backward()
        gradient = gradient * mask
        assert np.allclose(model[1].weight.grad.double().numpy(), gradient, rtol=1e-3, atol=1e-3)
        velocity = MOMENTUM * velocity + gradient + WEIGHT_DECAY * weight
        weight = (weight - RATE * velocity) * mask
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        assert np.allclose(stored(model), weight, rtol=1e-3, atol=1e-4)
        if step >= 3:
            assert np.array_equal(stored(model) != 0, mask)
    pruner.finalize()
    assert np.array_equal(stored(model) != 0, mask)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (2, 8)])
def test_the_mask_stays_whatever_the_weights_do(n, m):
    model = net(16, 8)
    pruner = Pruner(model, "asp", f"{n}:{m}", epochs=3)
    mask = largest(stored(model), n, m)
    pruner.start_epoch(0)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(model[1].weight.shape) * torch.from_numpy(mask))
    for epoch in (1, 2):
        pruner.start_epoch(epoch)
        pruner.step()
        assert np.array_equal(pruner.layers[0].state["keep"].numpy(), mask)
    before = stored(model)
    pruner.finalize()
    assert np.array_equal(stored(model), before)
    assert kept_in_groups(model[1].weight, m) == {n} and pruner.share == 1 - n / m


def test_layers_that_apex_leaves_dense():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 8, 3),  # taken
        nn.Conv2d(16, 12, 3),  # 12 outputs
        nn.Conv2d(8, 16, 3),  # 8 inputs
        nn.Linear(32, 1000),  # taken: ImageNet's classifier divides
        nn.Linear(24, 16),  # 24 inputs
        Conv1D(8, 16),  # taken: weight is (in, out)
        Conv1D(16, 8),  # 8 inputs
    )
    pruner = Pruner(model, "asp", "2:4", epochs=1)
    assert [layer.name for layer in pruner.layers] == ["1", "4", "6"]
    assert set(pruner.skipped) == {"0", "2", "3", "5", "7"}
    pruner.remove()
    pruner = Pruner(model, "asp", "2:4", epochs=1, all_layers=True)
    assert set(pruner.skipped) == {"0"}
    with pytest.raises(Refusal, match="8 outputs of 8 inputs"):
        Pruner(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3)), "asp", "2:4", epochs=1)
