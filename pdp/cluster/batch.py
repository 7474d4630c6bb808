"""The batch scripts of a sweep, and the command that starts a run inside a job. Needs no torch."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from pdp.cluster.manifest import SweepFolder
from pdp.errors import Refusal
from pdp.ranks import first_host, port_of_job

ROOT = Path(__file__).resolve().parents[2]
LAUNCHES = ("auto", "single", "torchrun", "srun")


@dataclass
class Resources:
    """The resources of a run."""

    time: str = "04:00:00"
    partition: str | None = None
    nodes: int = 1
    processes: int = 1  # per node
    gpus: int = 1  # per process
    cpus: int = 4  # per process
    mem: str | None = None  # per node
    launch: str = "auto"
    warn: int = 120  # seconds before the time limit at which a run saves and returns to the queue
    at_once: int | None = None
    restarts: int = 100  # most times that a run is requeued
    retries: int = 1  # most times that a run is started again after losing a process
    sbatch: list[str] = field(default_factory=list)  # further options for sbatch
    setup: list[str] = field(default_factory=list)  # shell commands before the run

    @property
    def world_size(self) -> int:
        """The number of processes of one run."""
        return self.nodes * self.processes

    @property
    def started_by(self) -> str:
        """The launcher: single, torchrun or srun."""
        if self.launch != "auto":
            return self.launch
        if self.world_size == 1:
            return "single"
        return "torchrun" if self.nodes == 1 else "srun"

    def check(self) -> None:
        """Raises `Refusal` for resources that do not fit together."""
        for name, least in (("nodes", 1), ("processes", 1), ("cpus", 1), ("gpus", 0), ("warn", 1), ("restarts", 0)):
            if getattr(self, name) < least:
                raise Refusal(f"--{name} {getattr(self, name)}: give at least {least}")
        if self.at_once is not None and self.at_once < 1:
            raise Refusal(f"--at-once {self.at_once}: give at least 1")
        if self.retries < 0:
            raise Refusal(f"--retries {self.retries}: give at least 0")
        if self.launch == "single" and self.world_size > 1:
            raise Refusal(f"--launch single starts one process, not {self.world_size}: give torchrun or srun")


def run_script(folder: SweepFolder, resources: Resources, name: str) -> str:
    """The batch script for the runs; its argument is a file of run numbers."""
    per_node = 1 if resources.started_by == "torchrun" else resources.processes
    cpus = resources.cpus * resources.processes // per_node
    directives = [
        f"--job-name={name}",
        f"--output={folder.logs.resolve()}/%A_%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{resources.warn}",
        f"--time={resources.time}",
        f"--nodes={resources.nodes}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={cpus}",
    ]
    if resources.gpus:
        directives.append(f"--gres=gpu:{resources.gpus * resources.processes}")
    if resources.mem:
        directives.append(f"--mem={resources.mem}")
    settings = {
        "launch": resources.started_by,
        "nodes": resources.nodes,
        "processes": resources.processes,
        "cpus": resources.cpus,
        "warn": resources.warn,
        "restarts": resources.restarts,
        "retries": resources.retries,
    }
    options = " ".join(f"--{key} {value}" for key, value in settings.items())
    command = f'exec {_python()} -m pdp.cluster.job {options} {shlex.quote(str(folder.path.resolve()))} "$1"'
    # A signal that comes before job.py handles signals must not end the job.
    return _script(directives, resources, ["trap '' USR1 TERM", f": ${{OMP_NUM_THREADS:={resources.cpus}}}"], command)


def gather_script(folder: SweepFolder, resources: Resources, name: str, wandb: bool) -> str:
    """The batch script for the job that makes the tables."""
    directives = [
        f"--job-name={name}-gather",
        f"--output={folder.logs.resolve()}/gather-%j.log",
        "--time=00:30:00",
        "--ntasks=1",
        "--cpus-per-task=1",
    ]
    script = shlex.quote(str(ROOT / "scripts" / "sweep_table.py"))
    words = f"exec {_python()} {script} {shlex.quote(str(folder.path.resolve()))}"
    return _script(directives, resources, [": ${OMP_NUM_THREADS:=1}"], words + (" --wandb" if wandb else ""))


def _script(directives: list[str], resources: Resources, before: list[str], command: str) -> str:
    if resources.partition:
        directives = [*directives, f"--partition={resources.partition}"]
    lines = ["#!/bin/bash", *(f"#SBATCH {_directive(one)}" for one in [*directives, *resources.sbatch])]
    lines += [
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        *resources.setup,
        *before,
        "export OMP_NUM_THREADS PYTHONUNBUFFERED=1",
    ]
    lines += [f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"', command]
    return "\n".join(lines) + "\n"


def _directive(option: str) -> str:
    key, equals, value = option.partition("=")
    return f'{key}="{value}"' if equals and any(one.isspace() for one in value) else option


def _python() -> str:
    return shlex.quote(sys.executable)


def start_command(settings: dict[str, str | int], ranks: Path, overrides: list[str]) -> list[str]:
    """The command that starts a run's processes inside its job; each process writes its exit code into `ranks`."""
    worker = ["-m", "pdp.cluster.rank", str(ranks), *overrides]
    launch, nodes, processes = settings["launch"], int(settings["nodes"]), int(settings["processes"])
    if launch == "single":
        return [sys.executable, *worker]
    if launch == "srun":
        shape = [f"--nodes={nodes}", f"--ntasks-per-node={processes}", f"--cpus-per-task={settings['cpus']}"]
        return ["srun", "--kill-on-bad-exit=1", *shape, sys.executable, *worker]
    torchrun = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc_per_node={processes}"),
        # torchrun passes these signals on to its processes; without this a USR1 would kill torchrun and orphan them.
        "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        f"--shutdown-timeout={max(30, int(settings['warn']) - 20)}",
    ]
    if nodes == 1:
        return [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", *worker]
    meeting = [
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={first_host()}:{port_of_job()}"),
        f"--rdzv-id={os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}",
    ]
    shape = [f"--nodes={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={int(settings['cpus']) * processes}"]
    return ["srun", "--kill-on-bad-exit=1", *shape, *torchrun, *meeting, *worker]
