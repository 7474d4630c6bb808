"""prune.round_to: what each coupling keeps is a multiple, and the total is near the best of all roundings."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

import pdp
from pdp.patterns.rounding import round_budget


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_kept_is_a_multiple_and_the_total_is_near_the_best_of_all(data):
    sizes = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=6))
    steps = [data.draw(st.sampled_from([1, 2, 8, 16])) for _ in sizes]
    least = [data.draw(st.integers(1, size)) for size in sizes]
    budget = [data.draw(st.integers(0, size - floor)) for size, floor in zip(sizes, least, strict=True)]
    layers = [SimpleNamespace(units=size, least=floor) for size, floor in zip(sizes, least, strict=True)]
    wanted = sum(budget) / sum(sizes)
    found = round_budget(layers, budget, steps, lambda counts: sum(counts) / sum(sizes), wanted)
    reachable = []
    for size, floor, step, count, end in zip(sizes, least, steps, budget, found, strict=True):
        kept = size - end
        assert kept >= floor and (kept % step == 0 or kept == size)
        assert abs(end - count) < step
        # By definition: all multiples (and the whole layer) within a step of what was asked.
        reachable.append(
            [size - k for k in range(floor, size + 1) if (k % step == 0 or k == size) and abs(size - k - count) < step]
        )
    best = min(abs(sum(counts) - sum(budget)) for counts in product(*reachable))
    assert abs(sum(found) - sum(budget)) <= best + max(steps) // 2


def test_a_slim_model_has_multiples_of_eight_channels_and_the_macs_that_were_asked():
    model = torchvision.models.resnet18(num_classes=10)
    image = torch.randn(1, 3, 32, 32)
    dense = int(pdp.count_macs(model, image).macs.sum())
    options = {"target": "macs", "round_to": 8, "prune_stem": True}
    pruner = pdp.Pruner(
        model, method="oneshot", sparsity=0.5, pattern="channel", pattern_options=options, epochs=1, example_input=image
    )
    pruner.start_epoch(0)
    pruner.finalize()
    slim = pdp.slim(model, image).model
    widths = [module.out_channels for module in slim.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths)
    assert int(pdp.count_macs(slim, image).macs.sum()) / dense == pytest.approx(0.5, abs=0.005)


def test_a_number_that_is_none_is_refused():
    with pytest.raises(pdp.Refusal, match="round_to.*give 1"):
        pdp.Pruner(
            torchvision.models.resnet18(),
            sparsity=0.5,
            pattern="channel",
            pattern_options={"round_to": 0},
            epochs=1,
            example_input=torch.zeros(1, 3, 32, 32),
        )
