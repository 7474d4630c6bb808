import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join([str(here.parents[1]), str(here)])
    processes = [
        subprocess.Popen(
            [sys.executable, str(here / "two_processes.py"), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
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
