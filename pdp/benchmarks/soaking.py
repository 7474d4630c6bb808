"""Trials of a soak: a short run meets a misfortune, is gone on with, and is held against one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pdp.benchmarks.forked_runs import Start, two_ranks

# 3 epochs of 4 steps of 35 ms on a core, and a checkpoint by the clock in almost every one.
RUN = ["model=resnet20", "debug=smoke", "device=cpu", "recipe.checkpoint_minutes=0.001", "recipe.history_steps=3"]
RANDOM, NM, CHANNEL = ["prune=random", "sparsity=0.8"], ["prune=nm"], ["prune=channel", "sparsity=0.5"]
TEACHER = ["distill=teacher", "distill.teacher={dense}"]
# Every method, and what else has a state: {dense} is a finished dense run.
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
    "srste": ["method=srste", *NM],
    "str": ["method=str", *RANDOM],
}
TIMES = ("step_ms", "mask_ms", "seconds")  # what no two runs share
LAST = -signal.SIGKILL


class NotHeld(AssertionError):
    """A promise that a trial saw broken."""


@dataclass
class Whole:
    """What a run that was left alone ended with."""

    weights: dict[str, torch.Tensor]
    history: list[dict[str, Any]]
    metric: float
    seconds: float


@dataclass
class Soak:
    """Trials in `folder`, drawn by `chance`."""

    folder: Path
    chance: random.Random
    wholes: dict[tuple[str, int], Whole] = field(default_factory=dict)
    number: int = 0

    def words(self, case: str, place: Path) -> list[str]:
        """The command of a case."""
        dense = next((self.folder / "dense").glob("*/seed0"), Path("none"))
        return [*RUN, *(word.format(dense=dense) for word in CASES[case]), f"output_dir={place}"]

    def prepare(self) -> None:
        """The dense run that others begin from or are taught by."""
        start = Start(self.words("dense", self.folder / "dense"), self.folder / "dense.log")
        expect(start, 0)

    def whole(self, case: str, ranks: int = 1) -> Whole:
        """The run of a case that was left alone; made when first asked for."""
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
        """Starts a case, once or as two processes."""
        place.mkdir(parents=True, exist_ok=True)
        if ranks == 2:
            return two_ranks(self.words(case, place), place / "log")
        return [Start(self.words(case, place), place / "log")]

    def sleep(self, whole: Whole) -> None:
        """Until a random moment of a start."""
        time.sleep(self.chance.uniform(0, 1.1 * whole.seconds))

    def trial(self, kind: str, case: str) -> None:
        """One misfortune and what follows; raises `NotHeld`. The trial's folder stays where something was not held."""
        self.number += 1
        place = self.folder / f"trial-{self.number}"
        KINDS[kind](self, case, place)
        shutil.rmtree(place)

    def goes_on(self, case: str, place: Path, ranks: int = 1, histories: bool = True) -> None:
        """The same command ends well, with what a run left alone ends with."""
        for start in self.start(case, place, ranks):
            expect(start, 0)
        whole, run = self.whole(case, ranks), the_run(place)
        weights = load_file(run / "model.safetensors")
        unequal = [name for name, value in whole.weights.items() if not torch.equal(weights[name], value)]
        held(not unequal and weights.keys() == whole.weights.keys(), f"weights differ, the first {unequal[:1]}", place)
        held(metric(run) == whole.metric, f"the metric is {metric(run)}, not {whole.metric}", place)
        held(not histories or history(run) == whole.history, "the histories differ", place)
        # The note of who held it may stay where a signal came between the record and the end.
        left = [path.name for path in (*run.glob(".[!lh]*"), *run.glob("checkpoint/.*"))]
        held(not left, f"left over: {left}", place)


# ---------------------------------------------------------------- misfortunes


def killed(soak: Soak, case: str, place: Path) -> None:
    """SIGKILL, up to three starts running."""
    for _ in range(soak.chance.randint(1, 3)):
        (start,) = soak.start(case, place)
        soak.sleep(soak.whole(case))
        send = soak.chance.choice([start.send, start.to_group])
        send(signal.SIGKILL)
        held(start.wait() in (LAST, 0), f"exit {start.code} of a killed start", place)
    soak.goes_on(case, place)


def asked_to_stop(soak: Soak, case: str, place: Path) -> None:
    """SIGTERM, SIGUSR1 or SIGHUP to the whole group: saved, exit 75."""
    for _ in range(soak.chance.randint(1, 2)):
        (start,) = soak.start(case, place)
        soak.sleep(soak.whole(case))
        listens = "on digits" in start.output
        number = soak.chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
        start.to_group(number)
        code = start.wait()
        # Before it listens, and after its record is written, there is nothing to save.
        aside = not listens or any(place.glob("*/seed0/record.json"))
        held(code in (75, 0) or (aside and code == -number), f"exit {code} after {number!r}", place)
    soak.goes_on(case, place)


def interrupted(soak: Soak, case: str, place: Path) -> None:
    """Ctrl-C, once or twice, as a terminal sends it."""
    (start,) = soak.start(case, place)
    soak.sleep(soak.whole(case))
    for _ in range(soak.chance.randint(1, 2)):
        start.to_group(signal.SIGINT)
        time.sleep(soak.chance.uniform(0, 0.05))
    code = start.wait(60)
    held(code in (75, 130, 0, -signal.SIGINT), f"exit {code} after Ctrl-C", place)
    soak.goes_on(case, place)


def worker_killed(soak: Soak, case: str, place: Path) -> None:
    """One of the loader's processes is killed, as by a lack of memory."""
    case = "pdp, two workers"
    (start,) = soak.start(case, place)
    soak.sleep(soak.whole(case))
    if workers := start.workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(soak.chance.choice(workers), signal.SIGKILL)
    code = start.wait()
    # After the record is written torch may still complain of it while the interpreter ends.
    whole = any(place.glob("*/seed0/record.json"))
    held(code in (3, 0) or whole, f"exit {code} after a worker was killed", place)
    soak.goes_on(case, place)


def disk_full(soak: Soak, case: str, place: Path) -> None:
    """The run's file system is too small; then it is made larger."""
    place.mkdir(parents=True)
    size = soak.chance.randint(1, 9)
    mount(place, size)
    try:
        (start,) = soak.start(case, place)
        code = start.wait()
        held(code in (3, 0), f"exit {code} on a disk of {size} MB", place)
        held("Traceback" not in start.output, "a traceback on a full disk", place)
        mount(place, 200, "remount,")
        soak.goes_on(case, place)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def files_damaged(soak: Soak, case: str, place: Path) -> None:
    """Killed, and then something of what it left is damaged."""
    (start,) = soak.start(case, place)
    soak.sleep(soak.whole(case))
    start.to_group(signal.SIGKILL)
    start.wait()
    run = next(place.glob("*/seed0"), None)
    checkpoints = sorted(run.glob("checkpoint/step-*.pt")) if run else []
    if run is not None and not (run / "record.json").is_file():
        soak.chance.choice(DAMAGES)(run, checkpoints[-1:], soak.chance)
    if len(checkpoints) == 1:
        # It may be the damaged one: then the run is refused, with the override that starts over.
        (again,) = soak.start(case, place)
        code = again.wait()
        held(code in (0, 2), f"exit {code} with its only checkpoint damaged", place)
        if code == 2:
            held("rerun=true" in again.output, "the refusal does not say rerun=true", place)
            shutil.rmtree(run or place)
    soak.goes_on(case, place, histories=False)


def rank_lost(soak: Soak, case: str, place: Path) -> None:
    """One of two processes is killed: the other one ends by itself, and both go on."""
    starts = soak.start(case, place, 2)
    soak.sleep(soak.whole(case, 2))
    lost = soak.chance.randrange(2)
    begun = "on digits" in starts[0].output
    starts[lost].send(signal.SIGKILL)
    if not begun:  # they have not met yet, and the other one would wait for half an hour
        starts[1 - lost].send(signal.SIGKILL)
    codes = [start.wait() for start in starts]
    held(codes[1 - lost] in (3, 0, LAST), f"exit {codes[1 - lost]} of the process that was left", place)
    soak.goes_on(case, place, 2)


def ranks_asked_to_stop(soak: Soak, case: str, place: Path) -> None:
    """SIGTERM to both of two processes, or to one of them."""
    starts = soak.start(case, place, 2)
    soak.sleep(soak.whole(case, 2))
    begun = bool(list(place.glob("*/seed0/checkpoint/step-*")))
    both = soak.chance.random() < 0.5 or not begun
    for start in starts if both else starts[:1]:
        start.to_group(signal.SIGTERM)
    codes = [start.wait() for start in starts]
    held(not begun or set(codes) <= {0, 3, 75}, f"exits {codes} after SIGTERM", place)
    soak.goes_on(case, place, 2)


KINDS: dict[str, Callable[[Soak, str, Path], None]] = {
    "killed (SIGKILL) up to three times": killed,
    "SIGTERM, SIGUSR1 or SIGHUP to the whole group": asked_to_stop,
    "Ctrl-C once or twice": interrupted,
    "a loader's worker killed": worker_killed,
    "a full disk, then room": disk_full,
    "killed, then a file damaged": files_damaged,
    "one of two processes killed": rank_lost,
    "SIGTERM to one or both of two processes": ranks_asked_to_stop,
}


# ---------------------------------------------------------------- damages


def truncated(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """The newest checkpoint has lost its end."""
    for path in newest:
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flipped(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """One bit of it is another."""
    for path in newest:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)


def without_digest(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Its digest is gone."""
    for path in newest:
        path.with_suffix(".sha256").unlink(missing_ok=True)


def gone(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """It is gone, its digest is there."""
    for path in newest:
        path.unlink()


def cut_histories(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """The histories end in the middle of a line."""
    for path in (run / "history.jsonl", run / "steps.jsonl"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[: -chance.randrange(1, path.stat().st_size + 1)])


def rubbish(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Files that nobody can read lie about, the configuration among them."""
    (run / "config.yaml").write_bytes(chance.randbytes(50))
    (run / ".holder").write_bytes(chance.randbytes(50))
    (run / "checkpoint").mkdir(exist_ok=True)
    (run / "checkpoint" / ".step-000000099.pt.1").write_bytes(chance.randbytes(50))


DAMAGES = (truncated, flipped, without_digest, gone, cut_histories, rubbish)


# ---------------------------------------------------------------- what is looked at


def held(true: bool, words: str, place: Path) -> None:
    """Raises `NotHeld` with where the trial lies."""
    if not true:
        logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(place.glob("log*")))
        raise NotHeld(f"{words} [{place}]\n{logs}")


def expect(start: Start, code: int) -> None:
    """Waits for an exit code."""
    found = start.wait()
    held(found == code, f"exit {found}, not {code}: {' '.join(start.words)}", start.log.parent)


def the_run(place: Path) -> Path:
    """The only run below a folder."""
    (run,) = place.glob("*/seed0")
    return run


def metric(run: Path) -> float:
    """A finished run's test metric."""
    return json.loads((run / "record.json").read_text())["metric"]


def history(run: Path) -> list[dict[str, Any]]:
    """Both histories, but for times."""
    lines = [
        json.loads(line) for name in ("history", "steps") for line in (run / f"{name}.jsonl").read_text().splitlines()
    ]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def mount(place: Path, megabytes: int, more: str = "") -> None:
    """A file system in memory of that size."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"{more}size={megabytes}m", "tmpfs", str(place)], check=True, capture_output=True
    )


def can_mount(folder: Path) -> bool:
    """Whether a small file system can be made here, which takes root."""
    place = folder / "mounted"
    place.mkdir(parents=True, exist_ok=True)
    try:
        mount(place, 1)
        subprocess.run(["umount", str(place)], check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
