"""Measures what a sweep of hundreds of cells takes on a cluster: to submit it, to ask how it goes, to make its table.

    python scripts/benchmark_sweep.py --cells 500              where Slurm's commands are
    python tests/small_slurm.py start FOLDER 1001              a Slurm on this machine, as root: prints what to export

The jobs are held, so that none starts, and are removed at the end. One cell is then trained here, and its files stand
for those of all cells, each with its own method, target and seed. For each command it writes seconds, seconds of
processor time and the calls of Slurm's commands to results/benchmarks/sweep_slurm.json. Exit codes: 0; 2 refused; 3
Slurm refused.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.cluster import slurm
from pdp.cluster.manifest import Run, SweepFolder
from pdp.errors import Refusal, Stopped
from pdp.runs.record import read_record, write_record
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "sacct")
PER_SEED = 50  # cells of a seed: two methods at 25 targets


def main(argv: Sequence[str] | None = None) -> int:
    """Submits, asks, makes tables, and writes what each took."""
    parser = Parser("benchmark_sweep.py", __doc__)
    parser.add_argument("--cells", type=int, default=500, help=f"a multiple of {PER_SEED} (500)")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "benchmarks" / "sweep_slurm.json")
    arguments = parser.parse_args(argv)
    if arguments.cells < PER_SEED or arguments.cells % PER_SEED:
        raise Refusal(f"--cells {arguments.cells}: give a multiple of {PER_SEED}")
    version = slurm.ask("sbatch", "--version").strip()

    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures

    with tempfile.TemporaryDirectory() as place:
        timed = Timed(Path(place))
        words = [*("model=resnet20", "debug=smoke", "device=cpu", "method=pdp,gmp"),
                 f"sparsity={','.join(f'{0.5 + number / 100:.2f}' for number in range(25))}",
                 f"seed=range({arguments.cells // PER_SEED})", f"output_dir={place}/runs"]  # fmt: skip
        submit = ["scripts/slurm/submit.py", "--gpus", "0", "--sbatch=--hold", *words]
        timed.run("submit: all cells", submit)
        (manifest,) = Path(place).glob("runs/.sweeps/*/manifest.jsonl")
        sweep = SweepFolder(manifest.parent)
        try:
            timed.run("submit again: all are in the queue", submit)
            timed.run("status: all wait", ["scripts/slurm/status.py", str(sweep.path)])
            arrays = len([one for one in sweep.submitted() if one.chunk])
        finally:
            for one in sweep.submitted():
                slurm.cancel(one.job)
        finish(sweep.runs())
        timed.run("status: all are done", ["scripts/slurm/status.py", str(sweep.path)])
        timed.run("table: all are done", ["scripts/sweep_table.py", str(sweep.path)])
    where = machine(torch.device("cpu"), 1) | {"slurm": version, "cells": arguments.cells, "arrays": arrays}
    write_figures(arguments.to, where | {"largest_array": slurm.largest_array()}, timed.rows)
    return 0


class Timed:
    """Runs commands and notes what they took; Slurm's commands are counted by scripts of the same names before them."""

    def __init__(self, place: Path):
        self.calls = place / "calls"
        self.rows: list[dict[str, Any]] = []
        folder = place / "bin"
        folder.mkdir()
        for name in COMMANDS:
            if real := shutil.which(name):
                (folder / name).write_text(f'#!/bin/sh\necho {name} >> "{self.calls}"\nexec {real} "$@"\n')
                (folder / name).chmod(0o755)
        search = f"{folder}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": search, "PYTHONPATH": str(ROOT)}

    def run(self, name: str, command: list[str]) -> None:
        """Runs one of the project's scripts; raises `Stopped` where it fails."""
        self.calls.write_text("")
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise Stopped(f"{command[0]} ended with exit code {done.returncode}, see above")
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        row = {
            "command": name,
            "seconds": round(seconds, 1),
            "processor_seconds": round(processor, 1),
            "slurm_calls": dict(Counter(self.calls.read_text().split())),
            "load_average": round(os.getloadavg()[0], 1),
        }
        self.rows.append(row)
        print(row, flush=True)


def finish(runs: Sequence[Run]) -> None:
    """Trains the first cell, and gives every other one its files as its own."""
    first = runs[0]
    subprocess.run([sys.executable, "train.py", *first.overrides], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    record = read_record(first.path)
    for run in runs[1:]:
        values = dict(word.split("=", 1) for word in run.overrides)
        shutil.copytree(first.path, run.path)
        own = dataclasses.replace(
            record,
            run_id=run.run_id,
            config_hash=run.run_id.partition("-")[0] + record.config_hash[8:],
            method=values["method"],
            target_sparsity=float(values["sparsity"]),
            seed=int(values["seed"]),
        )
        write_record(own, run.path)


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_sweep", main))
