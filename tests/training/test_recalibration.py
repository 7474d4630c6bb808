"""New BatchNorm statistics are plain averages over the given batches, and nothing else changes."""

import numpy as np
import torch
from torch import nn

from pdp.training.recalibration import recalibrate


class Observed:
    """A task of which nothing but the forward is asked."""

    def observe(self, model, batch):
        model(batch)


def test_statistics_are_averages_over_the_batches_asked_for_and_nothing_else_moves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU(), nn.Dropout(0.5)).double()
    model[1].running_mean.fill_(7.0)
    model.train()
    batches = [torch.randn(4, 3, 6, 6, dtype=torch.float64) + place for place in range(5)]
    before = [one.detach().clone() for one in model.parameters()]
    assert recalibrate(Observed(), model, batches, 3) == 3
    inputs = [model[0](batch).detach().numpy().swapaxes(0, 1).reshape(5, -1) for batch in batches[:3]]
    np.testing.assert_allclose(model[1].running_mean, np.mean([one.mean(1) for one in inputs], 0), rtol=1e-12)
    np.testing.assert_allclose(model[1].running_var, np.mean([one.var(1, ddof=1) for one in inputs], 0), rtol=1e-12)
    assert all(torch.equal(one, old) for one, old in zip(model.parameters(), before, strict=True))
    assert model.training and model[3].training and model[1].momentum == 0.3


def test_a_model_without_statistics_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    assert recalibrate(Observed(), model, [torch.zeros(1, 3)], 4) == 0
