"""Keeps a finished run: copies the small files that tables are made from to results/records. Needs no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pdp.errors import Refusal
from pdp.runs.directory import RunDirectory
from pdp.runs.record import RECORD
from pdp.runs.store import read_run

LARGEST_RUN = 100_000  # bytes of a kept run, at most
LARGEST_RESULTS = 40_000_000  # bytes of everything committed under results/, at most
NOT_COMMITTED = ("runs", "report.html", "dashboard.html")  # in results/


def keep(run: Path, study: str, results: Path, small: bool = False) -> tuple[Path, list[str]]:
    """Copies what tables need to results/records/<study>/<run>/seed<k>; returns the folder, and what was left out.

    `small` leaves out histograms and the history's values by layer, for studies of hundreds of runs. Raises `Refusal`
    for a run that is not finished or cannot be made small enough, and if results/ would become too large.
    """
    if not re.fullmatch(r"\w[\w.-]*", study):
        raise Refusal(f"--study {study} is not a name: give letters, digits, dots, dashes and underscores")
    if not re.fullmatch(r"seed\d+", run.name):
        raise Refusal(f"{run} was moved aside or is no run: keep the run that took its place")
    status = read_run(run).status
    if status != "finished":
        raise Refusal(f"{run} is {status}: only finished runs are kept")
    files, left_out = fit(run)
    if small:
        files.pop("distributions.npz", None)
        files["history.jsonl"], _ = thin(RunDirectory(run).read_history(), LARGEST_RUN)
    target = results / "records" / study / run.resolve().parent.name / run.name
    free = LARGEST_RESULTS - size(results, without=[results / name for name in NOT_COMMITTED]) + size(target)
    needed = sum(map(len, files.values()))
    if needed > free:
        raise Refusal(f"{run} needs {needed:,} bytes, and {results} has {free:,} left of {LARGEST_RESULTS:,}")
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    # The record is written last, so that its presence shows that all files are there.
    for name in sorted(files, key=lambda name: name == RECORD):
        beside = target / f".{name}"
        beside.write_bytes(files[name])
        beside.replace(target / name)
    return target, left_out


def fit(run: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of a kept run in at most `LARGEST_RUN` bytes, and what was left out for that."""
    names = (RECORD, "layers.csv", "soft_gap.csv", "history.jsonl", "distributions.npz")
    files = {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
    # A dense run has no soft masks to compare with hard ones.
    left_out = [f"{name} is missing" for name in names if name not in files and name != "soft_gap.csv"]

    def room() -> int:
        return LARGEST_RUN - sum(map(len, files.values()))

    if room() < 0 and "distributions.npz" in files:
        del files["distributions.npz"]
        left_out.append("distributions.npz left out")
    if room() < 0 and "history.jsonl" in files:
        del files["history.jsonl"]
        files["history.jsonl"], words = thin(RunDirectory(run).read_history(), room())
        left_out.append(f"history.jsonl {words}")
    if room() < 0:
        raise Refusal(f"{run}: record.json and layers.csv alone are more than {LARGEST_RUN:,} bytes")
    return files, left_out


def thin(lines: Sequence[dict[str, Any]], room: int) -> tuple[bytes, str]:
    """A history in at most `room` bytes: first without its values by layer, then every second, fourth, ... line only.

    The last line is always kept, even if it exceeds `room`.
    """
    slim = [
        json.dumps({key: value for key, value in line.items() if not key.startswith("layer_")}) + "\n" for line in lines
    ]
    every = 1
    while True:
        kept = [line for number, line in enumerate(slim) if (len(slim) - 1 - number) % every == 0]
        text = "".join(kept).encode()
        if len(text) <= room or len(kept) <= 1:
            words = "without values by layer"
            return text, words if every == 1 else f"{words}, every {every} epochs"
        every *= 2


def size(folder: Path, without: Collection[Path] = ()) -> int:
    """The size in bytes of all files below `folder`, except those in or below the paths in `without`."""
    total = 0
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(here, name) not in without]
        paths = [Path(here, name) for name in names]
        total += sum(os.lstat(path).st_size for path in paths if path not in without)
    return total
