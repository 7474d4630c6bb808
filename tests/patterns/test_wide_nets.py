"""Random nets of many kinds, others every day: each way to be without weights or channels is one function, or refused.

A line of a failure names the net: `Net(seed)`.
"""

import copy
import datetime
import random
import warnings
from contextlib import suppress

import pytest
import torch
from torch.utils._pytree import tree_leaves
from wide_nets import Net

import pdp

NOW = {"warmup": "0ep", "ramp": "1ep"}
DRAWN = random.Random(datetime.date.today().toordinal()).sample(range(100_000), 8)


def outputs(model, inputs):
    with torch.no_grad():
        found = [model(one) for one in (inputs, -3 * inputs, inputs[:1])]
    return [one.double() for one in tree_leaves(found) if isinstance(one, torch.Tensor)]


def far(some, others):
    pairs = [(one, other) for one, other in zip(some, others, strict=True) if bool(one.isfinite().all())]
    return max((float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs), default=0.0)


@pytest.mark.parametrize("seed", [*range(6), *DRAWN])
def test_channels_are_gone_in_every_way_alike_or_stay(seed):
    model = Net(seed).double().eval()
    inputs = model.inputs().double()
    try:
        pruner = pdp.Pruner(
            model,
            pattern="channel",
            sparsity=0.4,
            epochs=2,
            schedule=NOW,
            allocation="uniform",
            example_input=inputs[:1],
            pattern_options={"prune_stem": True},
        )
    except pdp.Refusal:
        return
    pruner.start_epoch(0)
    with pruner.hard():
        hard = outputs(model, inputs)
    pruner.finalize()
    finished = outputs(model, inputs)
    assert far(hard, finished) < 1e-6, f"hard and finished, {model.named}"
    assert far(finished, outputs(pdp.slim(model, inputs[:1]).model.eval(), inputs)) < 1e-6, f"slim, {model.named}"


@pytest.mark.parametrize("seed", DRAWN[:8])
def test_single_weights_are_gone_in_every_way_alike_and_all_are_named(seed):
    model = Net(seed).eval()
    inputs = model.inputs()
    pattern = "2:4" if seed % 4 == 0 else "random"
    outputs(model, inputs[:1])
    pruner = pdp.Pruner(model, pattern=pattern, sparsity=None if pattern == "2:4" else 0.6, epochs=2, schedule=NOW)
    named = {member.parameter for layer in pruner.layers for member in layer.members} | set(pruner.skipped)
    held = {id(member.tensor) for layer in pruner.layers for member in layer.members}
    for name, parameter in model.named_parameters():
        above = [name.rsplit(".", count)[0] for count in range(4)]
        assert parameter.dim() < 2 or id(parameter) in held or named.intersection(above), f"{name}, {model.named}"
    pairs = [(model, pruner)]
    with suppress(RuntimeError):  # weights that torch.nn.utils computes cannot be copied before they are read
        pairs.append(copy.deepcopy((model, pruner)))
    total = sum(layer.units for layer in pruner.layers)
    for one, other in pairs:
        other.start_epoch(0)
        with other.hard():
            hard = outputs(one, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other.finalize()
        assert far(hard, outputs(one, inputs)) < 1e-3, f"hard and finished, {model.named}"
        assert sum(layer.pruned for layer in other.layers) == (
            total // 2 if pattern == "2:4" else round(0.6 * total + 1e-9)
        )
        assert sum(int((layer.weight == 0).sum()) for layer in other.layers) >= int(0.5 * total)
