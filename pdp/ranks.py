"""The processes of a run inside a job: which one this is, and how each ended. Needs no torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import MutableMapping
from pathlib import Path

FIRST_PORT, PORTS = 20000, 20000


def take_rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """The rank of this process; where srun and not torchrun started it, set as torch.distributed reads it."""
    if "RANK" not in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", "1"))
        tasks = int(environment["SLURM_STEP_NUM_TASKS"])
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        environment["WORLD_SIZE"] = str(tasks)
        environment["LOCAL_WORLD_SIZE"] = str(tasks // nodes)
        environment.setdefault("MASTER_ADDR", first_host(environment))
        environment.setdefault("MASTER_PORT", str(port_of_job(environment)))
    return int(environment.get("RANK", "0"))


def first_host(environment: MutableMapping[str, str] = os.environ) -> str:
    """Where Slurm reaches the first node of the job; the machine itself where the job has no other."""
    if int(environment.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        return "127.0.0.1"
    name = _scontrol("show", "hostnames", environment["SLURM_JOB_NODELIST"]).split()[0]
    # The address that Slurm knows and not the name, which need not be one that the others can look up.
    shown = dict(word.partition("=")[::2] for word in _scontrol("--oneliner", "show", "node", name).split())
    return shown.get("NodeAddr", name)


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout


def port_of_job(environment: MutableMapping[str, str] = os.environ) -> int:
    """A port that two jobs on one node hardly share."""
    return FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS


def note_code(folder: Path, rank: int, code: int) -> None:
    """Files the exit code of a rank that came to an end of its own."""
    beside = folder / f".{rank}"
    beside.write_text(str(code))
    beside.replace(folder / str(rank))


def codes(folder: Path) -> dict[int, int]:
    """The filed exit codes by rank; one that was killed has none."""
    return {int(path.name): int(path.read_text()) for path in folder.glob("[0-9]*")}
