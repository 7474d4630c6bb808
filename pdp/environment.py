"""Where and with what a run is made: processes, folders, device, memory, versions, commit. Needs no torch to begin."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from pdp.errors import Refusal

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "numpy",
    "numba",
    "hydra-core",
    "transformers",
    "tokenizers",
    "datasets",
)


_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # one of them is set by every launcher
_OF_A_LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def process_count(environment: MutableMapping[str, str] = os.environ) -> int:
    """Processes of this run, as WORLD_SIZE says; one where it says nothing that is a number."""
    text = environment.get("WORLD_SIZE", "").strip()
    return max(1, int(text)) if text.isdecimal() else 1


def settle_processes(environment: MutableMapping[str, str] = os.environ) -> str:
    """Takes away what a platform set of a launcher's variables where no launcher started this process; a note, or ''.

    Raises `Refusal` where they ask for several processes and do not say where these meet.
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


def writable_folder(*candidates: str | Path | None) -> Path | None:
    """The first of these folders that can be made and written to."""
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            folder = Path(candidate).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")  # a full disk makes files, and fills none
            return folder
        except (OSError, RuntimeError):  # where there is no home at all
            continue
    return None


def cache_folder(otherwise: str | Path | None = None) -> Path | None:
    """Where what is cheap to lose is kept: PDP_CACHE_DIR, XDG_CACHE_HOME/pdp or ~/.cache/pdp, else `otherwise`."""
    if given := os.environ.get("PDP_CACHE_DIR"):
        return writable_folder(given, otherwise)
    return writable_folder(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pdp", otherwise)


def peak_memory_mb(device: torch.device) -> float:
    """The device's largest allocation, or the process's largest resident size."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, where it can be told so (glibc).

    A step on the CPU frees and takes the same gigabytes again; given back to the system, every page of them is cleared
    and mapped anew in every step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        tune = ctypes.CDLL(None).mallopt
        tune(-1, -1)  # M_TRIM_THRESHOLD: never
        tune(-4, 0)  # M_MMAP_MAX


def device_name(device: torch.device) -> str:
    """The device in words."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions of what results depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of this checkout, marked where files differ from it; None outside one."""
    root = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
