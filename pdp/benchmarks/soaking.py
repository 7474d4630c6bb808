"""Short runs of every method for a soak test: started, resumed, and compared with an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pdp.benchmarks.forked_runs import Start, two_ranks

# 3 epochs of 4 steps; a step takes about 35 ms on one core, so that nearly every step writes a checkpoint.
RUN = ["model=resnet20", "debug=smoke", "device=cpu", "recipe.checkpoint_minutes=0.001", "recipe.history_steps=3"]
RANDOM, NM, CHANNEL = ["prune=random", "sparsity=0.8"], ["prune=nm"], ["prune=channel", "sparsity=0.5"]
TEACHER = ["distill=teacher", "distill.teacher={dense}"]
# Every method, and other options that have a state of their own; {dense} stands for a finished dense run.
CASES: dict[str, list[str]] = {
    "pdp": RANDOM,
    "pdp_annealed": ["method=pdp_annealed", *RANDOM],
    "pdp 2:4": NM,
    "pdp channels": CHANNEL,
    "pdp, two workers": [*RANDOM, "data.workers=2", "recipe.augmentation=pad_crop_flip"],
    "pdp, accumulation 2": [*RANDOM, "recipe.accumulation=2"],
    "pdp, moving average": [*RANDOM, "recipe.ema=0.9"],
    "pdp, a teacher": [*RANDOM, *TEACHER],
    "pdp, a teacher's cached logits": [*RANDOM, *TEACHER, "distill.cache=disk"],
    "pdp, measured every 3 steps": [*RANDOM, "recipe.evaluate_every=3it", "schedule.unit=step"],
    "pdp, all of these": [
        *(*RANDOM, *TEACHER, "data.workers=2", "recipe.accumulation=2", "recipe.ema=0.9"),
        *("recipe.evaluate_every=5it", "recipe.on_nonfinite=skip", "recipe.optimizer=adamw", "recipe.lr=0.002"),
    ],
    "acdc": ["method=acdc", *RANDOM],
    "asp": ["method=asp", *NM, "model.pretrained={dense}/model.safetensors"],
    "chex": ["method=chex", *CHANNEL],
    "cs": ["method=cs", *RANDOM],
    "dense": ["method=dense"],
    "dnw": ["method=dnw", *RANDOM],
    "gmp": ["method=gmp", *RANDOM],
    "granet": ["method=granet", *RANDOM, "method.update_every=2it"],
    "lbc": ["method=lbc", *NM],
    "movement": ["method=movement", *RANDOM],
    "movement, soft": ["method=movement", "method.variant=soft", *RANDOM],
    "oneshot": ["method=oneshot", *RANDOM],
    "optg": ["method=optg", *RANDOM],
    "pofa": ["method=pofa", *RANDOM, *TEACHER],
    "rigl": ["method=rigl", *RANDOM, "method.update_every=2it"],
    "sfp": ["method=sfp", *CHANNEL],
    "slimming": ["method=slimming", *CHANNEL],
    "sparsegpt": ["method=sparsegpt", *RANDOM],
    "srste": ["method=srste", *NM],
    "str": ["method=str", *RANDOM],
    "wanda": ["method=wanda", *RANDOM],
}
TIMES = ("step_ms", "mask_ms", "seconds")  # keys that differ between any two runs
LAST = -signal.SIGKILL


class NotHeld(AssertionError):
    """A trial found that something promised does not hold."""


@dataclass
class Whole:
    """The results of an undisturbed run."""

    weights: dict[str, torch.Tensor]
    history: list[dict[str, Any]]
    metric: float
    seconds: float


@dataclass
class Soak:
    """Trials in `folder`, chosen by the random generator `chance`."""

    folder: Path
    chance: random.Random
    wholes: dict[tuple[str, int], Whole] = field(default_factory=dict)
    number: int = 0
    kills: int = 0  # SIGKILLs that met a process at work

    def kill(self, start: Start, send: Callable[[int], None] | None = None) -> None:
        """Sends SIGKILL, to the process group where nothing else is given, and counts it where the process lives."""
        self.kills += start.code is None
        (send or start.to_group)(signal.SIGKILL)

    def words(self, case: str, place: Path) -> list[str]:
        """The command line of a case."""
        dense = next((self.folder / "dense").glob("*/seed0"), Path("none"))
        return [*RUN, *(word.format(dense=dense) for word in CASES[case]), f"output_dir={place}"]

    def prepare(self) -> None:
        """Makes the dense run that other cases start from or use as teacher."""
        start = Start(self.words("dense", self.folder / "dense"), self.folder / "dense.log")
        expect(start, 0)

    def whole(self, case: str, ranks: int = 1) -> Whole:
        """The undisturbed run of a case; made at the first request."""
        if (case, ranks) not in self.wholes:
            place = self.folder / f"whole-{len(self.wholes)}"
            starts = self.start(case, place, ranks)
            for start in starts:
                expect(start, 0)
            run = the_run(place)
            self.wholes[case, ranks] = Whole(
                load_file(run / "model.safetensors"), history(run), metric(run), time.monotonic() - starts[0].began
            )
        return self.wholes[case, ranks]

    def start(self, case: str, place: Path, ranks: int = 1) -> list[Start]:
        """Starts a case, as one or as two processes."""
        place.mkdir(parents=True, exist_ok=True)
        if ranks == 2:
            return two_ranks(self.words(case, place), place / "log")
        return [Start(self.words(case, place), place / "log")]

    def sleep(self, whole: Whole, start: Start | None = None) -> None:
        """Waits until a random moment within a run's duration, and no longer than the process `start` lives.

        One that begins anew and ends before that moment tells how long a run takes now: another load than before.
        """
        end = time.monotonic() + self.chance.uniform(0, 1.1 * whole.seconds)
        while time.monotonic() < end and (start is None or start.code is None):
            time.sleep(0.002)
        if start is not None and start.code == 0 and "going on from" not in start.output:
            whole.seconds = min(whole.seconds, time.monotonic() - start.began)

    def goes_on(self, case: str, place: Path, ranks: int = 1, histories: bool = True) -> None:
        """Gives the same command again; it must end well, with the results of the undisturbed run."""
        for start in self.start(case, place, ranks):
            expect(start, 0)
        whole, run = self.whole(case, ranks), the_run(place)
        weights = load_file(run / "model.safetensors")
        unequal = [name for name, value in whole.weights.items() if not torch.equal(weights[name], value)]
        held(not unequal and weights.keys() == whole.weights.keys(), f"weights differ, the first {unequal[:1]}", place)
        held(metric(run) == whole.metric, f"the metric is {metric(run)}, not {whole.metric}", place)
        held(not histories or history(run) == whole.history, "the histories differ", place)
        # The note of who held the run may remain if a signal came between the record and the end.
        left = [path.name for path in (*run.glob(".[!lh]*"), *run.glob("checkpoint/.*"))]
        held(not left, f"left over: {left}", place)


def held(true: bool, words: str, place: Path) -> None:
    """Raises `NotHeld` with the trial's folder unless `true`."""
    if not true:
        logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(place.glob("log*")))
        raise NotHeld(f"{words} [{place}]\n{logs}")


def expect(start: Start, code: int) -> None:
    """Waits for the process and checks its exit code."""
    found = start.wait()
    held(found == code, f"exit {found}, not {code}: {' '.join(start.words)}", start.log.parent)


def the_run(place: Path) -> Path:
    """The only run in a folder."""
    (run,) = place.glob("*/seed0")
    return run


def metric(run: Path) -> float:
    """A finished run's test metric."""
    return json.loads((run / "record.json").read_text())["metric"]


def history(run: Path) -> list[dict[str, Any]]:
    """Both histories, without times."""
    lines = [
        json.loads(line) for name in ("history", "steps") for line in (run / f"{name}.jsonl").read_text().splitlines()
    ]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def mount(place: Path, megabytes: int, more: str = "") -> None:
    """Mounts a file system of that size in memory."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"{more}size={megabytes}m", "tmpfs", str(place)], check=True, capture_output=True
    )


def can_mount(folder: Path) -> bool:
    """Whether a small file system can be mounted here, which requires root."""
    place = folder / "mounted"
    place.mkdir(parents=True, exist_ok=True)
    try:
        mount(place, 1)
        subprocess.run(["umount", str(place)], check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
