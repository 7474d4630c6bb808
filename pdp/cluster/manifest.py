"""A sweep's folder: its manifest, the submissions, and how each run's last job ended. Needs no torch.

manifest.jsonl      a line per run: its number, its overrides, its directory and id
submissions.jsonl   a line per job array or gather job
chunks/<n>.txt      the runs of one array: line k is the number of the run that array task k starts
endings/<n>.json    what is known about run n's newest job
logs/               what the jobs printed
table.csv, ...      what the gather job made
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdp.errors import Refusal
from pdp.runs.record import RECORD, write_json

SWEEPS = ".sweeps"


@dataclass(frozen=True)
class Run:
    """One line of the manifest."""

    number: int
    overrides: list[str]
    varied: str
    run_id: str
    directory: str  # absolute path of the run's directory

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(self.directory)

    @property
    def finished(self) -> bool:
        """Whether the run has written its record."""
        return (self.path / RECORD).is_file()


@dataclass
class Ending:
    """A run's newest job; `code` is None while it runs, and remains so if the job died without a message."""

    job: str  # in squeue's notation, 12_3
    restart: int = 0
    code: int | None = None
    words: str = ""
    log: str = ""
    started: float = 0.0
    ended: float | None = None
    retries: int = 0  # how often the run was started again after losing a process


@dataclass
class Submission:
    """One job array, or the gather job if `chunk` is empty."""

    job: str
    chunk: str = ""
    runs: list[int] = field(default_factory=list)
    log: str = ""


class SweepFolder:
    """Reads and writes the files in a sweep's folder."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest = path / "manifest.jsonl"
        self.submissions = path / "submissions.jsonl"
        self.chunks = path / "chunks"
        self.endings = path / "endings"
        self.logs = path / "logs"
        self.ranks = path / "ranks"

    def make(self, runs: Sequence[Run]) -> None:
        """Creates the folder with its manifest; raises `Refusal` if it exists with other runs."""
        text = "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in runs)
        if self.manifest.is_file() and self.manifest.read_text(encoding="utf-8") != text:
            raise Refusal(f"{self.path} holds another sweep: give another --name")
        for folder in (self.path, self.chunks, self.endings, self.logs, self.ranks):
            folder.mkdir(parents=True, exist_ok=True)
        beside = self.manifest.with_name(f".{self.manifest.name}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.manifest)

    def runs(self) -> list[Run]:
        """Every run of the sweep; raises `Refusal` if the folder is not that of a sweep."""
        try:
            lines = self.manifest.read_text(encoding="utf-8").splitlines()
            return [Run(**json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise Refusal(f"{self.path} is no sweep's folder ({error}): give one below <output_dir>/.sweeps") from None

    def submitted(self) -> list[Submission]:
        """All submissions, oldest first."""
        if not self.submissions.is_file():
            return []
        return [Submission(**json.loads(line)) for line in self.submissions.read_text(encoding="utf-8").splitlines()]

    def note_submission(self, submission: Submission) -> None:
        """Records a submission that sbatch has accepted."""
        with self.submissions.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(submission)) + "\n")

    def new_chunk(self, runs: Sequence[int]) -> Path:
        """A new file of run numbers for one array."""
        number = 1 + len(list(self.chunks.glob("*.txt")))
        path = self.chunks / f"{number:04d}.txt"
        path.write_text("".join(f"{run}\n" for run in runs), encoding="utf-8")
        return path

    def ending(self, number: int) -> Ending | None:
        """What is known about a run's newest job."""
        try:
            values: dict[str, Any] = json.loads((self.endings / f"{number}.json").read_text(encoding="utf-8"))
            return Ending(**values)
        except (OSError, ValueError, TypeError):
            return None

    def note_ending(self, number: int, ending: Ending) -> None:
        """Records what is known about a run's newest job."""
        write_json(self.endings / f"{number}.json", dataclasses.asdict(ending))

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this context is open nobody else can submit to this sweep; raises `Refusal` if somebody is doing so."""
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Refusal(f"{self.path} is being submitted by another process: wait for it") from None
            yield


def name_of(words: Sequence[str]) -> str:
    """The name of a sweep that was given none; it does not depend on the order of the arguments."""
    return hashlib.sha256("\n".join(sorted(words)).encode()).hexdigest()[:8]


def find_sweep(name: str | None, runs: Path) -> SweepFolder:
    """The sweep with that folder or name below `runs`, or the newest one; raises `Refusal`."""
    known = sorted((runs / SWEEPS).glob("*/manifest.jsonl"), key=lambda path: path.stat().st_mtime)
    if name is None:
        # If Slurm accepted nothing of a sweep, it has a manifest but no submission.
        known = [path for path in known if SweepFolder(path.parent).submitted()]
        if not known:
            raise Refusal(f"no sweep was submitted to {runs}: give its folder, or where the runs lie with --runs")
        return SweepFolder(known[-1].parent)
    for path in (Path(name), runs / SWEEPS / name):
        if (path / "manifest.jsonl").is_file():
            return SweepFolder(path)
    names = ", ".join(path.parent.name for path in known) or "none"
    raise Refusal(f"{name} is no sweep: give its folder or its name; below {runs}: {names}")
