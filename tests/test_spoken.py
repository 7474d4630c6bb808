"""Refusals of the library name Python arguments, those of the harness name overrides of the command line."""

import pytest
from torch import nn

from pdp import Pruner
from pdp.errors import Refusal
from pdp.schedule.shapes import place_schedule
from pdp.spoken import config_words


def make(**values):
    return Pruner(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), **({"sparsity": 0.9} | values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"exclude": ["foo*"]}, 'exclude=["foo*"] matches no'),
        ({"epochs": 5, "schedule": {"warmup": "16ep", "rate": 0.015}}, 'schedule={"warmup": "16ep"}'),
        ({"method": "cs", "rounds": 300}, "lower rounds or raise epochs"),
        ({"method": "str", "pattern": "channel"}, 'pattern="channel"'),
        ({"pattern": "nm", "sparsity": None, "pattern_options": {"n": 4, "m": 2}}, 'pattern_options["n"]'),
    ],
)
def test_a_library_user_reads_keywords(values, words):
    with pytest.raises(Refusal) as refused:
        make(**values)
    said = str(refused.value)
    assert words in said and not any(key in said for key in ("prune.", "recipe.", "method.", "schedule.", "dry_run"))
    with config_words(), pytest.raises(Refusal) as refused:
        make(**values)
    assert any(key in str(refused.value) for key in ("prune", "recipe.", "method.", "schedule."))


@pytest.mark.parametrize("steps", [None, 1, 7, 100])
def test_the_default_schedule_reaches_the_target_in_a_run_of_any_length(steps):
    own = {"name": "linear", "unit": "epoch", "ramp": None}
    for epochs in (*range(1, 30), 99, 100, 101, 300):
        placed = place_schedule(None, own, epochs, steps)
        assert placed.unit == ("step" if steps and epochs < 100 else "epoch")
        assert placed.fraction(placed.moments - 1, placed.start) == 1
        assert placed.start == int(0.16 * placed.moments + 0.5)
    hundred = place_schedule(None, own, 100, steps)
    assert (hundred.start, hundred.speed) == (16, 0.015)


def test_the_readmes_own_call_works():
    pruner = make(epochs=10)
    shares = []
    for epoch in range(10):
        pruner.start_epoch(epoch)
        shares.append(pruner.share)
    assert shares[:2] == [0, 0] and shares[-1] == pytest.approx(0.9, abs=0.01)


def test_more_zeros_than_asked_are_told():
    import torch

    model = nn.Sequential(nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight[:7] = 0
    pruner = Pruner(model, "str", sparsity=0.5, epochs=4, schedule={"warmup": "0ep", "ramp": "1ep"})
    pruner.attach(torch.optim.SGD(model.parameters(), 0.1))
    pruner.start_epoch(0)
    with pytest.warns(UserWarning, match=r"20 more weights are zero than were pruned \(70.00%"):
        pruner.finalize()
