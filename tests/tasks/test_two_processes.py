from types import SimpleNamespace

import numpy as np
import pytest
import torch
import two_processes
from forked_ranks import in_ranks
from making import configuration
from two_processes import TEXTS

from pdp.config.compose import compose
from pdp.tasks import build_task
from pdp.tasks.sampling import set_epoch
from pdp.training.assembly import make_model
from pdp.training.evaluation import measure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    in_ranks(2, two_processes.main, str(folder), log=folder / "log")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_see_together_what_one_sees(both):
    first, second = both
    task = build_task(configuration({"name": "digits", "limit": 41}))
    task.open_data()
    loader = task.train_loader(8, 1, "pad_crop_flip", 0)
    set_epoch(loader, 4, 2)
    alone = [batch["image"] for batch in loader]
    together = [torch.cat(halves) for halves in zip(first["train"], second["train"], strict=True)]
    assert len(alone) == 3
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))
    seen = torch.cat([*first["evaluation"], *second["evaluation"]])
    assert sorted(seen.tolist()) == list(range(41))


def test_texts_of_like_length_are_shared_out_and_masks_and_metrics_are_one(both):
    first, second = (one["texts"] for one in both)
    task = build_task(compose(TEXTS))
    task.open_data()
    loader = task.train_loader(8, 1, "none", 0)
    set_epoch(loader, 0)
    alone = list(loader)
    assert len(alone) == 25
    for batch, *halves in zip(alone, first["seen"], second["seen"], strict=True):
        assert torch.equal(batch["index"], torch.cat([half["index"] for half in halves]))
        for half, part in zip(halves, (slice(0, 4), slice(4, 8)), strict=True):
            longest = half["attention_mask"].sum(1).max()
            assert half["input_ids"].shape == (4, longest)  # padded to its own longest text
            assert torch.equal(half["input_ids"], batch["input_ids"][part, :longest])
    assert all(torch.equal(keep, second["keep"][name]) for name, keep in first["keep"].items())
    kept = np.concatenate([keep.numpy().ravel() for keep in first["keep"].values()])
    assert (kept == 0).sum() == int(0.75 * kept.size + 0.5)
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    # 203 test texts do not divide by two; one process with the same weights says the same.
    assert task.sizes()["test"] == 203 and first["metrics"] == second["metrics"]
    model = make_model(task.config, task)
    model.load_state_dict(first["model"])
    again = measure(task, model, task.evaluation_loader("test", 8, 0), SimpleNamespace(num_processes=1))
    assert again["accuracy"] == first["metrics"]["accuracy"]
    assert again["loss"] == pytest.approx(first["metrics"]["loss"], rel=1e-6)
