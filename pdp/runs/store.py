"""The runs on the disk: where they are, and the state of each. Needs no torch."""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pdp.errors import Refusal
from pdp.patterns.options import label_of
from pdp.runs.record import RECORD, check_kinds
from pdp.wording import nearest, of_unit, percent

_TAIL = 1 << 16  # bytes; more than a line of the history
_ID = re.compile(r"([0-9a-f]{8})(?:-(\d.*))?")
_ASIDE = re.compile(r"seed\d+\.before-")  # as `RunDirectory.move_aside` names it
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class StoredRun:
    """One run as a table shows it; None stands for unknown. `sparsity` and a metric in [0, 1] are fractions."""

    path: Path
    status: str  # finished, unfinished, running or damaged
    model: str | None = None
    data: str | None = None
    method: str | None = None
    pattern: str | None = None
    sparsity: float | None = None  # the target
    target_unit: str = "weight"  # what the target is a share of: weight, channel or mac
    epoch: int | None = None  # number of epochs done
    epochs: int | None = None
    metric_name: str = ""
    metric: float | None = None  # test metric if finished, else validation metric of the last epoch
    when: float | None = None  # end of the run, or of its last epoch, in seconds since 1970
    ending: str | None = None  # of an unfinished run: saved, stopped, refused, interrupted or failed; None: killed
    values: dict[str, Any] = field(default_factory=dict)  # its configuration by dotted key

    @property
    def state(self) -> str:
        """The word in tables: finished, running, damaged, or how it ended: saved, stopped, ..., dead (killed)."""
        return (self.ending or "dead") if self.status == "unfinished" else self.status

    @property
    def id(self) -> str:
        """`<hash8>-<seed>`, as in the record."""
        return f"{self.path.parent.name.rpartition('-')[2]}-{self.path.name.removeprefix('seed')}"

    @property
    def asked(self) -> str:
        """The target in its own unit; "" without a target."""
        if self.sparsity is None or self.method == "dense":
            return ""
        return percent(self.sparsity) + of_unit(self.target_unit)


def find_runs(folder: Path) -> list[Path]:
    """The directories of all runs in `folder`, which may be a run, a folder of seeds, or a folder of those."""
    if re.match(r"seed\d", folder.name):
        return [folder]
    return sorted(path for glob in ("seed[0-9]*", "*/seed[0-9]*") for path in folder.glob(glob) if path.is_dir())


def current_runs(folder: Path) -> list[Path]:
    """Those of `find_runs` that tables count: without runs that rerun=true has moved aside, unless `folder` is one."""
    return [path for path in find_runs(folder) if path == folder or not _ASIDE.match(path.name)]


def resolve(names: Iterable[str], runs: Path) -> list[Path]:
    """The runs that `names` refer to: directories, or ids as `list` shows them; raises `Refusal` for anything else."""
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
    """The run at `path`, from its record, or else from its configuration and the end of its history."""
    if (path / RECORD).is_file():
        try:
            record = json.loads((path / RECORD).read_text(encoding="utf-8"))
            check_kinds(record)
            known = {key: record[key] for key in ("model", "data", "method", "pattern", "metric_name", "metric")}
            run = StoredRun(path, "finished", **known, sparsity=float(record["target_sparsity"]))
            run.target_unit = record.get("target_unit", "weight")
            run.epoch = run.epochs = int(record["epochs"])
            run.when = calendar.timegm(time.strptime(record["finished_at"], "%Y-%m-%dT%H:%M:%SZ"))
            with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
                text = (path / "config.yaml").read_text(encoding="utf-8")
                run.values = _flat(yaml.load(text, Loader=_LOADER))
            return run
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
        run.pattern = label_of(prune["pattern"], prune)
        if prune["pattern"] == "channel":
            run.target_unit = "mac" if prune.get("target") == "macs" else "channel"
        run.sparsity, run.epochs = config["sparsity"], config["recipe"]["epochs"]
        run.when = (run.path / "config.yaml").stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return  # it was stopped before it wrote one


def is_held(path: Path) -> bool:
    """Whether a process holds the run's lock."""
    try:
        with (path / ".lock").open() as file:
            # A shared lock, so that two processes that only test it do not take each other for the holder.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def epochs_done(line: dict[str, Any]) -> int:
    """The number of whole epochs done at a line of the history."""
    return int(line.get("epochs_done", line.get("epoch", -1) + 1))


def last_line(history: Path) -> dict[str, Any] | None:
    """The last complete line of a history."""
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
    """Estimated seconds of training left, from the mean speed of the epochs so far."""
    line = last_line(run / "history.jsonl")
    if not line or not epochs or not line.get("seconds"):
        return None
    done = line.get("epochs_done", line["epoch"] + 1)
    return line["seconds"] / done * (epochs - done)
