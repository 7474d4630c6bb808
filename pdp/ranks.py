"""The processes of a run inside a job: the rank of this one, and how each one ended. Needs no torch."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import MutableMapping
from contextvars import ContextVar
from pathlib import Path

from pdp.errors import Refusal

FIRST_PORT, PORTS = 20000, 20000
# Whether this process is train.py's own, which a signal may end, and not another program that calls pdp.run.
OWN_PROCESS: ContextVar[bool] = ContextVar("own_process", default=False)
_REQUESTS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")  # by which a process is asked to end

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # every launcher sets one of these
_OF_A_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def process_count(environment: MutableMapping[str, str] = os.environ) -> int:
    """The number of processes of this run from WORLD_SIZE; one if it is not a number."""
    text = environment.get("WORLD_SIZE", "").strip()
    return max(1, int(text)) if text.isdecimal() else 1


def is_main_process(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that speaks, as RANK says."""
    return environment.get("RANK", "").strip() in ("", "0")


def settle_processes(environment: MutableMapping[str, str] = os.environ) -> str:
    """Removes a launcher's variables that a platform has set although no launcher started this process.

    Returns a note, or ''. Raises `Refusal` if they ask for several processes but do not say where these meet.
    """
    size = environment.get("WORLD_SIZE", "").strip()
    rank = next((environment[name].strip() for name in _RANKS if environment.get(name, "").strip()), "")
    if rank.isdecimal() and size.isdecimal():
        if int(size) > 1 and "RANK" in environment and not environment.get("MASTER_ADDR"):
            raise Refusal(
                f"RANK={rank} and WORLD_SIZE={size} ask for several processes, and MASTER_ADDR does not say where they "
                "meet: start them with torchrun, or unset RANK and WORLD_SIZE for one process"
            )
        return ""
    if rank.isdecimal() and int(rank) > 0 and "WORLD_SIZE" in environment:
        raise Refusal(f"WORLD_SIZE={size} is no number of processes for RANK={rank}: start them with torchrun")
    if size in ("", "1") and not any(environment.get(name) for name in _OF_A_LAUNCHER if name != "WORLD_SIZE"):
        environment.pop("WORLD_SIZE", None)
        return ""
    found = {name: environment.pop(name) for name in _OF_A_LAUNCHER if name in environment}
    told = " ".join(f"{name}={value}" for name, value in found.items())
    return f"{told} is set and no launcher started this process: it runs by itself, as one" if told else ""


def take_rank(environment: MutableMapping[str, str] = os.environ) -> int:
    """The rank of this process; if srun started it and not torchrun, sets it for torch.distributed."""
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
    """The address of the job's first node for Slurm; this machine if the job has no other."""
    if int(environment.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        return "127.0.0.1"
    name = _scontrol("show", "hostnames", environment["SLURM_JOB_NODELIST"]).split()[0]
    # The address known to Slurm, because other nodes may be unable to resolve the name.
    shown = dict(word.partition("=")[::2] for word in _scontrol("--oneliner", "show", "node", name).split())
    return shown.get("NodeAddr", name)


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout


def port_of_job(environment: MutableMapping[str, str] = os.environ) -> int:
    """A port that two jobs on one node are unlikely to share."""
    return FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS


def end_quietly() -> None:
    """From now on requests to end are ignored: nothing is left to save, and only the interpreter has yet to exit.

    Otherwise a request in these seconds would make a finished run look like one that was killed.
    """
    for name in _REQUESTS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def note_code(folder: Path, rank: int, code: int) -> None:
    """Writes down the exit code of a rank that ended by itself."""
    beside = folder / f".{rank}"
    beside.write_text(str(code))
    beside.replace(folder / str(rank))


def codes(folder: Path) -> dict[int, int]:
    """The exit codes that were written down, by rank; a rank that was killed has none."""
    return {int(path.name): int(path.read_text()) for path in folder.glob("[0-9]*")}
