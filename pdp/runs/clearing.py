"""Deletes what runs no longer need, and archives whole runs. Needs no torch."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pdp.errors import Refusal
from pdp.runs.directory import RunDirectory
from pdp.runs.record import RECORD
from pdp.runs.store import is_held, read_run


def to_delete(paths: Sequence[Path], results: Path, finished: bool, unfinished: bool) -> Iterator[tuple[Path, str]]:
    """What cleaning would delete, and why: checkpoints of finished runs, and whole runs only if asked for."""
    records = (results / "records").glob(f"*/*/seed*/{RECORD}") if finished else ()
    kept = {(record.parents[1].name, record.read_bytes()) for record in records}
    for path in paths:
        status = read_run(path).status
        if status == "finished":
            if (path.resolve().parent.name, (path / RECORD).read_bytes()) in kept:
                yield path, "finished and kept"
            elif (path / "checkpoint").is_dir():
                yield path / "checkpoint", "checkpoints of a finished run"
        elif status == "unfinished" and unfinished:
            yield path, "UNFINISHED run"


def delete(path: Path, reason: str) -> None:
    """Deletes one item of `to_delete`, unless a process holds its run; then raises `Refusal`."""
    run = path.parent if path.name == "checkpoint" else path
    with _held(run) as directory:
        if directory.finished == reason.startswith("UNFINISHED"):
            raise Refusal(f"{run} has changed meanwhile: look again")
        # Renamed first, so that the remains of an interrupted deletion are not taken for a run.
        aside = path.with_name(f".deleted-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)
    if path == run and not any(run.parent.iterdir()):
        run.parent.rmdir()


@contextmanager
def _held(run: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(run)
    directory.hold()
    try:
        yield directory
    finally:
        directory.release()


def archive(paths: Sequence[Path], target: Path) -> int:
    """Writes whole runs without their checkpoints to a new tar file; returns its size in bytes, raises `Refusal`."""
    if target.suffix != ".tar":
        raise Refusal(f"--to {target}: give a file that ends in .tar")
    if target.exists():
        raise Refusal(f"--to {target} exists: give a new file")
    if not target.absolute().parent.is_dir():
        raise Refusal(f"--to {target}: there is no folder {target.parent}")
    names: dict[str, Path] = {}
    for path in paths:
        if is_held(path):
            raise Refusal(f"{path} is running: archive it when it has ended")
        name = f"{path.resolve().parent.name}/{path.name}"
        if name in names:
            raise Refusal(f"{names[name]} and {path} are both called {name}: archive them in two files")
        names[name] = path
    left_out = {f"{name}/{inside}" for name in names for inside in ("checkpoint", ".lock", ".holder")}
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with tarfile.open(beside, "w") as tar:
            for name, path in names.items():
                tar.add(path, name, filter=lambda one: None if one.name in left_out else one)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target.stat().st_size
