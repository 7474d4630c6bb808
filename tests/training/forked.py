"""Short runs for the tests of signals and kills: configurations, how they are started, and reference results."""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from pdp.benchmarks.forked_runs import Start, two_ranks
from pdp.benchmarks.soaking import history, the_run

# 3 epochs of 12 steps, and 12 batches to measure on; a line of steps.jsonl after each.
RUN = ["model=resnet20", "sparsity=0.8", "debug=smoke", "device=cpu", "data.limit=24", "recipe.batch_size=2"]
RUN += ["recipe.history_steps=1", "recipe.augmentation=pad_crop_flip"]


def start(folder: Path, *words: str) -> Start:
    """One start; its output lies beside the runs."""
    folder.mkdir(exist_ok=True)
    return Start([*RUN, *words, f"output_dir={folder}"], folder / "log")


def start_two(folder: Path, *words: str) -> list[Start]:
    """The two processes of one run."""
    folder.mkdir(exist_ok=True)
    return two_ranks([*RUN, *words, f"output_dir={folder}"], folder / "log")


def steps_done(folder: Path) -> int:
    """How many optimizer steps the run has written a line of."""
    path = next(folder.glob("*/seed0/steps.jsonl"), None)
    return len(path.read_text().splitlines()) if path else 0


def wait_for(reached, *starts: Start) -> None:
    """Until something is so; a start that ends before is a failure."""
    end = time.monotonic() + 300
    while not reached():
        assert all(one.code is None for one in starts), starts[0].output
        assert time.monotonic() < end, starts[0].output
        time.sleep(0.0005)


def same_end(one: Path, other: Path) -> None:
    """Two runs ended with the same weights and histories."""
    weights, others = (load_file(the_run(folder) / "model.safetensors") for folder in (one, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], value) for name, value in others.items())
    assert history(the_run(one)) == history(the_run(other))
