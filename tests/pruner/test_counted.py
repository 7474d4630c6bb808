"""A loop that counts epochs, steps or metrics otherwise than the pruner was told is told so, once."""

import copy
import warnings

import pytest
import torch
from small_models import small_net

from pdp import Pruner
from pdp.errors import Refusal

AUTO = {"warmup": "auto", "ramp": "2ep"}


def loop(epochs, steps, metric=None, pruner=None, **values):
    """The warnings of a loop over these epochs, each of so many steps."""
    pruner = pruner or Pruner(small_net(), sparsity=0.5, epochs=10, **values)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in epochs:
            pruner.start_epoch(epoch, metric)
            for _ in range(steps):
                pruner.step()
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("epochs", "steps", "words"),
    [
        (range(1, 4), 2, ["start_epoch(1) before start_epoch(0): epochs count from 0"]),
        (range(8, 12), 2, ["start_epoch(10): a run of epochs=10 has the epochs 0 to 9"]),
        (range(1, 11), 2, ["start_epoch(1) before", "start_epoch(10): a run"]),
        (range(4), 5, ["epoch 0 had 5 optimizer steps and steps_per_epoch=2"]),
        (range(4), 1, ["epoch 0 had 1 optimizer steps and steps_per_epoch=2"]),
        (range(10), 2, []),
        ([3, 3, 7, 9], 1, []),  # what is no loop is nobody's mistake
    ],
)
def test_other_counts_are_told_once(epochs, steps, words):
    told = loop(epochs, steps, steps_per_epoch=2)
    assert len(told) == len(words) and all(one.startswith(word) for one, word in zip(told, words, strict=True))


def test_a_run_that_goes_on_in_the_middle_of_an_epoch_is_told_nothing():
    torch.manual_seed(0)
    pruner = Pruner(small_net(), sparsity=0.5, epochs=10, steps_per_epoch=2)
    loop([0], 1, pruner=pruner)
    again = Pruner(small_net(), sparsity=0.5, epochs=10, steps_per_epoch=2)
    again.load_state_dict(copy.deepcopy(pruner.state_dict()))
    again.step()
    assert loop([1, 2], 2, pruner=again) == []


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", True, None])
def test_what_is_no_epoch_is_refused(epoch):
    pruner = Pruner(small_net(), sparsity=0.5, epochs=10)
    with pytest.raises(Refusal, match="epochs are whole numbers from 0"):
        pruner.start_epoch(epoch)
    assert pruner.epoch is None


def test_a_metric_in_percent_begins_no_ramp():
    with pytest.raises(Refusal, match=r"metric=70 is above upper_bound=1, .* upper_bound=<its best possible value>"):
        loop([0], 1, metric=70.0, schedule=AUTO)
    with pytest.raises(Refusal, match="metric='good' is no number"):
        loop([0], 1, metric="good")
    assert loop(range(3), 1, metric=70.0) == []  # nothing waits for it
    assert loop(range(8), 1, metric=70.0, schedule=AUTO, upper_bound=100.0) == []
    assert loop(range(3), 1, metric=float("nan"), schedule=AUTO) == []
