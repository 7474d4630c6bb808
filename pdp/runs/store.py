"""The runs on the disk: what each is, and keeping, cleaning and archiving them. Needs no torch."""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pdp.errors import Refusal
from pdp.runs.directory import RunDirectory
from pdp.runs.record import RECORD
from pdp.wording import nearest

LARGEST_RUN = 100_000  # bytes of one kept run
LARGEST_RESULTS = 40_000_000  # bytes of all that is committed under results/
NOT_COMMITTED = ("runs", "report.html", "dashboard.html")  # under results/
_TAIL = 1 << 16  # bytes; longer than a history's line
_ID = re.compile(r"([0-9a-f]{8})(?:-(\d.*))?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class StoredRun:
    """One run as a table shows it; what is not known is None. `sparsity` and a fraction's `metric` are fractions."""

    path: Path
    status: str  # finished, unfinished, running or damaged
    model: str | None = None
    data: str | None = None
    method: str | None = None
    pattern: str | None = None
    sparsity: float | None = None  # the target
    epoch: int | None = None  # how many are done
    epochs: int | None = None
    metric_name: str = ""
    metric: float | None = None  # of the test set where finished, else of the last epoch's validation
    when: float | None = None  # seconds since 1970 of the end, or of the last epoch
    ending: str | None = None  # of an unfinished one: saved, stopped, refused, interrupted, failed; None: killed
    values: dict[str, Any] = field(default_factory=dict)  # its configuration by dotted key

    @property
    def state(self) -> str:
        """What a table calls it: finished, running, damaged, or how it ended: saved, stopped, ..., dead (killed)."""
        return (self.ending or "dead") if self.status == "unfinished" else self.status

    @property
    def id(self) -> str:
        """`<hash8>-<seed>`, as in the record."""
        return f"{self.path.parent.name.rpartition('-')[2]}-{self.path.name.removeprefix('seed')}"


def find_runs(folder: Path) -> list[Path]:
    """The directories of all runs in `folder`, which is a run, holds seeds, or holds runs that hold seeds."""
    if re.match(r"seed\d", folder.name):
        return [folder]
    return sorted(path for glob in ("seed[0-9]*", "*/seed[0-9]*") for path in folder.glob(glob) if path.is_dir())


def resolve(names: Iterable[str], runs: Path) -> list[Path]:
    """The runs that `names` mean: directories, or ids as `list` shows them; raises `Refusal` for any other."""
    found: dict[Path, None] = {}
    for name in names:
        match = _ID.fullmatch(name)
        paths = find_runs(Path(name)) if Path(name).is_dir() else []
        if not paths and match:
            paths = sorted(path for path in runs.glob(f"*-{match[1]}/seed{match[2] or '*'}") if path.is_dir())
        if not paths:
            near = nearest(name, [StoredRun(path, "").id for path in find_runs(runs)])
            hint = f"did you mean {' or '.join(near)}?" if near else f"`list` shows the runs below {runs}"
            raise Refusal(f"{name} is no run: give a run's directory or its id; {hint}")
        found |= dict.fromkeys(paths)
    return list(found)


def read_run(path: Path) -> StoredRun:
    """What the run at `path` is, from its record, else from its configuration and the end of its history."""
    if (path / RECORD).is_file():
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            known = {key: record[key] for key in ("model", "data", "method", "pattern", "metric_name", "metric")}
            run = StoredRun(path, "finished", **known, sparsity=float(record["target_sparsity"]))
            run.epoch = run.epochs = int(record["epochs"])
            run.when = calendar.timegm(time.strptime(record["finished_at"], "%Y-%m-%dT%H:%M:%SZ"))
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
                text = (path / "config.yaml").read_text(encoding="utf-8")
                run.values = _flat(yaml.load(text, Loader=_LOADER))
            return run
        except (OSError, ValueError, KeyError, TypeError):
            return StoredRun(path, "damaged")
    run = StoredRun(path, "running" if is_held(path) else "unfinished")
    _read_configuration(run)
    if run.status == "unfinished":
        run.ending = _ending(path)
    line = last_line(path / "history.jsonl")
    if line:
        run.epoch, run.metric = epochs_done(line), line.get("metric")
        run.metric_name = next(iter(line.get("metrics") or ()), "")
        run.when = (path / "history.jsonl").stat().st_mtime
    return run


def _ending(path: Path) -> str | None:
    try:
        return str(json.loads((path / "ending.json").read_text(encoding="utf-8"))["how"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {path.removesuffix("."): node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{path}{key}.")
    return found


def _read_configuration(run: StoredRun) -> None:
    try:
        config = yaml.load((run.path / "config.yaml").read_text(encoding="utf-8"), Loader=_LOADER)
        run.values = _flat(config)
        prune = config["prune"]
        run.model, run.data, run.method = (config[group]["name"] for group in ("model", "data", "method"))
        run.pattern = f"{prune['n']}:{prune['m']}" if prune["pattern"] == "nm" else prune["pattern"]
        run.sparsity, run.epochs = config["sparsity"], config["recipe"]["epochs"]
        run.when = (run.path / "config.yaml").stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return  # it was stopped before it wrote one


def is_held(path: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with (path / ".lock").open() as file:
            # A shared lock, so that two processes that only look do not take each other for the holder.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def epochs_done(line: dict[str, Any]) -> int:
    """How many whole epochs a history's line is after."""
    return int(line.get("epochs_done", line.get("epoch", -1) + 1))


def last_line(history: Path) -> dict[str, Any] | None:
    """The last whole line of a history."""
    try:
        with history.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            return line
    return None


def seconds_left(run: Path, epochs: int | None) -> float | None:
    """Seconds of training that are left, at the mean speed of the epochs so far."""
    line = last_line(run / "history.jsonl")
    if not line or not epochs or not line.get("seconds"):
        return None
    done = line.get("epochs_done", line["epoch"] + 1)
    return line["seconds"] / done * (epochs - done)


# -------------------------------------------------------------------------------------------------------------- keep


def keep(run: Path, study: str, results: Path, small: bool = False) -> tuple[Path, list[str]]:
    """Copies what tables are made from to results/records/<study>/<run>/seed<k>; returns where, and what was left out.

    `small` leaves out histograms and the history's values by layer, for studies of hundreds of runs.
    Raises `Refusal` for a run that is not finished or cannot be made small enough, and where results/ would be full.
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
    # The record comes last: where it is, everything is.
    for name in sorted(files, key=lambda name: name == RECORD):
        beside = target / f".{name}"
        beside.write_bytes(files[name])
        beside.replace(target / name)
    return target, left_out


def fit(run: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files of a kept run in at most `LARGEST_RUN` bytes, and what had to go for it."""
    names = (RECORD, "layers.csv", "soft_gap.csv", "history.jsonl", "distributions.npz")
    files = {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
    # A dense run has no soft masks to compare with the hard ones.
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
    """A history in at most `room` bytes: first without its values by layer, then every second, fourth, ... line too.

    The last line stays; where even that is too much it is returned all the same.
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
    """Bytes of all files below `folder`, but for those that are or lie below one of `without`."""
    total = 0
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(here, name) not in without]
        paths = [Path(here, name) for name in names]
        total += sum(os.lstat(path).st_size for path in paths if path not in without)
    return total


# ------------------------------------------------------------------------------------------------------------- clean


def to_delete(paths: Sequence[Path], results: Path, finished: bool, unfinished: bool) -> Iterator[tuple[Path, str]]:
    """What cleaning would delete, and why: checkpoints of finished runs; whole runs only where asked for."""
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
    """Deletes one thing that `to_delete` named, while no process holds its run; raises `Refusal` if one does."""
    run = path.parent if path.name == "checkpoint" else path
    with _held(run) as directory:
        if directory.finished == reason.startswith("UNFINISHED"):
            raise Refusal(f"{run} has changed meanwhile: look again")
        # Renamed first, so that the rest of an interrupted deletion is not taken for a run.
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


# ----------------------------------------------------------------------------------------------------------- archive


def archive(paths: Sequence[Path], target: Path) -> int:
    """Writes whole runs but for their checkpoints to a new tar file; returns its bytes, raises `Refusal`."""
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
