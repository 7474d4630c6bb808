"""allocation.least_density for every method: no layer falls below it, neither at the end nor during training."""

import math

import numpy as np
import pytest
import torch
from by_hand import sgd, train_step, two_layers, zeros_in
from small_models import CALIBRATED, CASES, case_net, case_pruner, train_epoch

from pdp import Pruner

LEAST = 0.1


@pytest.mark.parametrize("method", [method for method, pattern in CASES if pattern == "random"])
def test_every_layer_keeps_its_least_share(method):
    """The middle layer's weights are a hundredth of the others': a cut over all would leave one of them."""
    torch.manual_seed(3)
    model = case_net()
    with torch.no_grad():
        model[3].weight.mul_(0.01)
    options = {} if method in ("cs", "str", "granet", *CALIBRATED) else {"allocation": "global"}
    values = {"lr": 0.3} if method in ("str", "cs") else {}
    if method in ("str", "cs"):
        options["controller"] = "cubic"
    pruner = case_pruner(model, method, "random", epochs=5, least_density=LEAST, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=values.get("lr", 0.05))
    pruner.attach(optimizer)
    for epoch in range(5):
        train_epoch(model, pruner, optimizer, epoch, dtype=torch.float64)
    pruner.finalize()
    for layer in pruner.layers:
        assert int(torch.count_nonzero(layer.weight.abs() > 1e-12)) >= math.ceil(LEAST * layer.units), layer.name
    if method not in ("rigl",):  # ERK has no layer under its floor here
        assert pruner.share == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("controller", ["none", "cubic"])
def test_strs_thresholds_stop_where_the_floor_is(controller):
    """A threshold that has learned its way over all weights of a layer would have no gradient to come back by."""
    model = two_layers()
    sparsity = {"sparsity": 0.5} if controller == "cubic" else {}
    pruner = Pruner(
        model, "str", epochs=4, schedule={"warmup": "1ep", "ramp": "1ep"}, controller=controller, initial=-2.0,
        threshold_decay=0.0, least_density=0.25, **sparsity,
    )  # fmt: skip
    optimizer = sgd(model, pruner, lr=0.1)
    for step in range(12):
        if step % 3 == 0:
            pruner.start_epoch(step // 3)
        train_step(model, pruner, optimizer, step)
        with torch.no_grad():  # as if it had learned to prune everything
            pruner.method.extras["0"].add_(5.0)
        pruner.step()
        threshold = 1 / (1 + math.exp(-float(pruner.method.extras["0"].detach())))
        kept = int((np.abs(model[0].weight.detach().numpy()) > threshold).sum())
        assert kept == 5  # a quarter of twenty, and no more than must stay
    pruner.finalize()
    assert zeros_in([model[0].weight.detach().numpy()])[0] <= 15
