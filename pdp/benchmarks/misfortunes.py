"""Trials of a soak test: what randomly happens to a short run before the same command is given again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pdp.benchmarks.damages import DAMAGES
from pdp.benchmarks.soaking import LAST, Soak, held, mount


def killed(soak: Soak, case: str, place: Path) -> None:
    """Sends SIGKILL, to up to three starts in a row."""
    for _ in range(soak.chance.randint(1, 3)):
        whole = soak.whole(case)
        (start,) = soak.start(case, place)
        soak.sleep(whole, start)
        soak.kill(start, soak.chance.choice([start.send, start.to_group]))
        held(start.wait() in (LAST, 0), f"exit {start.code} of a killed start", place)
    soak.goes_on(case, place)


def asked_to_stop(soak: Soak, case: str, place: Path) -> None:
    """Sends SIGTERM, SIGUSR1 or SIGHUP to the process group; the run must save and exit with code 75."""
    for _ in range(soak.chance.randint(1, 2)):
        whole = soak.whole(case)
        (start,) = soak.start(case, place)
        soak.sleep(whole, start)
        listens = "on digits" in start.output
        number = soak.chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
        start.to_group(number)
        code = start.wait()
        # Before it handles signals, and after its record is written, there is nothing to save.
        aside = not listens or any(place.glob("*/seed0/record.json"))
        held(code in (75, 0) or (aside and code == -number), f"exit {code} after {number!r}", place)
    soak.goes_on(case, place)


def interrupted(soak: Soak, case: str, place: Path) -> None:
    """Sends Ctrl-C, once or twice, as a terminal does."""
    whole = soak.whole(case)
    (start,) = soak.start(case, place)
    soak.sleep(whole, start)
    for _ in range(soak.chance.randint(1, 2)):
        start.to_group(signal.SIGINT)
        time.sleep(soak.chance.uniform(0, 0.05))
    code = start.wait(60)
    # After the record is written, Ctrl-C may meet the interpreter while it exits and collects the loader's workers.
    recorded = any(place.glob("*/seed0/record.json"))
    held(code in (75, 130, 0, -signal.SIGINT) or recorded, f"exit {code} after Ctrl-C", place)
    soak.goes_on(case, place)


def worker_killed(soak: Soak, case: str, place: Path) -> None:
    """Kills one of the loader's processes, as happens when memory runs out."""
    case = "pdp, two workers"
    whole = soak.whole(case)
    (start,) = soak.start(case, place)
    soak.sleep(whole, start)
    if workers := start.workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(soak.chance.choice(workers), signal.SIGKILL)
            soak.kills += 1
    code = start.wait()
    # After the record is written, torch may report the lost worker while the interpreter exits.
    recorded = any(place.glob("*/seed0/record.json"))
    held(code in (3, 0) or recorded, f"exit {code} after a worker was killed", place)
    soak.goes_on(case, place)


def disk_full(soak: Soak, case: str, place: Path) -> None:
    """Runs on a file system that is too small, which is then enlarged."""
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
    """Kills the run and then damages some of its files."""
    whole = soak.whole(case)
    (start,) = soak.start(case, place)
    soak.sleep(whole, start)
    soak.kill(start)
    start.wait()
    run = next(place.glob("*/seed0"), None)
    checkpoints = sorted(run.glob("checkpoint/step-*.pt")) if run else []
    if run is not None and not (run / "record.json").is_file():
        soak.chance.choice(DAMAGES)(run, checkpoints[-1:], soak.chance)
    if len(checkpoints) == 1:
        # If a file that it needs is damaged, the run is refused, with the override that starts it over.
        (again,) = soak.start(case, place)
        code = again.wait()
        held(code in (0, 2), f"exit {code} with its only checkpoint damaged", place)
        if code == 2:
            held("rerun=true" in again.output, "the refusal does not say rerun=true", place)
            shutil.rmtree(run or place)
    soak.goes_on(case, place, histories=False)


def rank_lost(soak: Soak, case: str, place: Path) -> None:
    """Kills one of two processes: the other one must end by itself, and the run must go on with both."""
    whole = soak.whole(case, 2)
    starts = soak.start(case, place, 2)
    soak.sleep(whole, starts[0])
    lost = soak.chance.randrange(2)
    begun = "on digits" in starts[0].output
    soak.kill(starts[lost], starts[lost].send)
    if not begun:  # they have not connected yet, and the other one would wait for half an hour
        starts[1 - lost].send(signal.SIGKILL)
    codes = [start.wait() for start in starts]
    held(codes[1 - lost] in (3, 0, LAST), f"exit {codes[1 - lost]} of the process that was left", place)
    soak.goes_on(case, place, 2)


def ranks_asked_to_stop(soak: Soak, case: str, place: Path) -> None:
    """Sends SIGTERM to one or both of two processes."""
    whole = soak.whole(case, 2)
    starts = soak.start(case, place, 2)
    soak.sleep(whole, starts[0])
    begun = bool(list(place.glob("*/seed0/checkpoint/step-*")))
    both = soak.chance.random() < 0.5 or not begun
    for start in starts if both else starts[:1]:
        start.to_group(signal.SIGTERM)
    codes = []
    for start in starts:
        try:
            codes.append(start.wait(300 if begun else 60))
        except AssertionError:
            # One had ended before it listened, and the other would wait for it for half an hour; a launcher ends it.
            if begun:
                raise
    # After the record is written, a signal may come before train.py ignores it.
    recorded = any(place.glob("*/seed0/record.json"))
    ends = {0, 3, 75, *([-signal.SIGTERM] if recorded else [])}
    held(not begun or set(codes) <= ends, f"exits {codes} after SIGTERM", place)
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


def trial(soak: Soak, kind: str, case: str) -> None:
    """One misfortune and the runs after it; raises `NotHeld`, and then keeps the trial's folder."""
    soak.number += 1
    place = soak.folder / f"trial-{soak.number}"
    KINDS[kind](soak, case, place)
    shutil.rmtree(place)
