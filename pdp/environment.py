"""Where and with what a run is made: folders, device, memory, versions, commit."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import resource
import subprocess
import tempfile
from pathlib import Path

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
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep_freed_memory() -> None:
    """Lets the C library keep what is freed, where it can be told so (glibc).

    A step on the CPU frees and takes the same gigabytes again; if they go back to the system, every page is cleared
    and mapped anew in every step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        tune = ctypes.CDLL(None).mallopt
        tune(-1, -1)  # M_TRIM_THRESHOLD: never
        tune(-4, 0)  # M_MMAP_MAX


def device_name(device: torch.device) -> str:
    """The device in words."""
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
    if not (root / "pyproject.toml").is_file():
        return None  # installed, perhaps inside somebody's own repository
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
