"""POFA: what the first stage pruned is the mask of the fine-tuning, and training does not undo it."""

import pytest
import torch
from small_models import batch, case_net, case_pruner, case_step, train_epoch

from pdp import Pruner
from pdp.errors import Refusal


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def test_the_zeros_of_the_first_stage_are_locked_in_the_second():
    torch.manual_seed(0)
    model = case_net()
    first, optimizer = case_pruner(model, "pofa", "random", epochs=4), optimizer_of(model)
    first.attach(optimizer)
    for epoch in range(4):
        train_epoch(model, first, optimizer, epoch, dtype=torch.float64)
    first.finalize()
    weights = [layer.weight for layer in first.layers]
    zeros = [weight.detach() == 0 for weight in weights]
    before = [weight.detach().clone() for weight in weights]

    second, optimizer = (
        Pruner(model, "pofa", epochs=3, stage="finetune", schedule={"warmup": 0, "ramp": "1ep"}),
        optimizer_of(model),
    )
    second.attach(optimizer)
    assert second.report().pruned.tolist() == [int(mask.sum()) for mask in zeros]
    for epoch in range(3):
        train_epoch(model, second, optimizer, epoch, dtype=torch.float64)
    second.finalize()
    assert all(torch.equal(weight == 0, mask) for weight, mask in zip(weights, zeros, strict=True))
    assert all(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_model_without_zeros_cannot_be_locked():
    with pytest.raises(Refusal, match="has none"):
        Pruner(case_net(), "pofa", epochs=3, stage="finetune", schedule={"warmup": 0, "ramp": "1ep"})


def test_each_layers_smallest_go_at_its_cubic_share_every_so_many_steps():
    model = case_net()
    schedule = {"warmup": "2it", "ramp": "8it", "unit": "step"}
    pruner = case_pruner(model, "pofa", "random", epochs=4, sparsity=0.6, schedule=schedule, update_every="4it")
    optimizer = optimizer_of(model)
    pruner.attach(optimizer)
    before: list = []
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for step in range(3):
            case_step(model, pruner, optimizer, *batch(100 * epoch + step, dtype=torch.float64))
            taken = 3 * epoch + step + 1
            if taken % 4:
                assert not before or [layer.state["keep"].tolist() for layer in pruner.layers] == before
                continue
            fraction = 1 - (1 - min(1, (taken - 2 + 1) / 8)) ** 3  # Zhu and Gupta's cubic, in float64
            before = [layer.state["keep"].tolist() for layer in pruner.layers]
            for layer in pruner.layers:
                magnitudes = layer.weight.detach().abs().reshape(-1)
                gone = int(fraction * int(0.6 * layer.units + 0.5) + 0.5)
                cut = magnitudes.sort().values[gone - 1]
                kept = layer.state["keep"].reshape(-1)
                assert int((~kept).sum()) == gone
                # Their weights are zero at once, so that the zeros are the smallest.
                assert magnitudes[~kept].max() <= cut and (layer.weight.reshape(-1)[~kept] == 0).all()
