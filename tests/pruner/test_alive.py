"""Which weights get a gradient through their masks, against float64 formulas, for every method and pattern."""

import numpy as np
import pytest
import torch
from small_models import CASES, VARIANT_CASES, case_net, case_pruner, train_epoch

from pdp.pruner.alive import live_share


def at_target(method, pattern):
    torch.manual_seed(3)
    model = case_net()
    pruner = case_pruner(model, method, pattern, epochs=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner.attach(optimizer)
    for epoch in range(4):
        train_epoch(model, pruner, optimizer, epoch, dtype=torch.float64)
    return pruner


@pytest.mark.parametrize("kappa", [0.3, 1e-4])
def test_pdp_is_alive_where_the_slope_of_the_formula_is(kappa):
    torch.manual_seed(3)
    model = case_net()
    schedule = {"name": "constant"}
    pruner = case_pruner(model, "pdp", "random", epochs=2, schedule=schedule, temperature_mode="relative", kappa=kappa)
    pruner.start_epoch(0)
    alive = total = 0
    for layer in pruner.layers:
        w, t = layer.weight.detach().numpy(), float(layer.state["cut"])
        m = 1 / (1 + np.exp(-np.clip((w**2 - t**2) / (kappa * t * t), -60, 60)))
        alive += int((m + 2 * w**2 / (kappa * t * t) * m * (1 - m) >= 0.01).sum())
        total += w.size
    found = live_share(pruner)
    assert found["alive"] == pytest.approx(alive / total, abs=1 / total)
    assert (found["alive"] == 1.0) == (kappa == 0.3) and found["temperature"] < 0


@pytest.mark.parametrize(("method", "pattern"), CASES + VARIANT_CASES)
def test_every_method_has_a_share_of_live_weights(method, pattern):
    pruner = at_target(method, pattern)
    before = {name: value.clone() for name, value in pruner.model.state_dict().items()}
    found = live_share(pruner)
    assert 0 < found["alive"] <= 1
    assert all(torch.equal(value, before[name]) for name, value in pruner.model.state_dict().items())
    assert all(layer.weight.grad is None for layer in pruner.layers)
    if method in ("gmp", "oneshot", "granet", "rigl") and pattern == "random":
        assert found["alive"] == pytest.approx(1 - pruner.share, abs=1e-9)  # what is kept and nothing else
    if method in ("dnw", "srste"):
        assert found["alive"] == 1.0  # straight through
