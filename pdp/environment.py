"""The environment in which a run is made: folders, device, memory, versions, commit."""

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
    """The first of these folders that exists or can be created, and can be written to."""
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            folder = Path(candidate).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")  # on a full disk files can be created but not filled
            return folder
        except (OSError, RuntimeError):  # there may be no home folder
            continue
    return None


def cache_folder(otherwise: str | Path | None = None) -> Path | None:
    """The folder for cached files: PDP_CACHE_DIR, XDG_CACHE_HOME/pdp or ~/.cache/pdp, else `otherwise`."""
    if given := os.environ.get("PDP_CACHE_DIR"):
        return writable_folder(given, otherwise)
    return writable_folder(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pdp", otherwise)


def peak_memory_mb(device: torch.device) -> float:
    """The device's largest allocation, or the process's largest resident size, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def keep_freed_memory() -> None:
    """Tells the C library to keep freed memory, if it supports that (glibc).

    A step on the CPU frees and allocates the same gigabytes again. If they were returned to the system, every page
    would be cleared and mapped again in every step.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        tune = ctypes.CDLL(None).mallopt
        tune(-1, -1)  # M_TRIM_THRESHOLD: never
        tune(-4, 0)  # M_MMAP_MAX


def device_name(device: torch.device) -> str:
    """The name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit(root: Path | None = None) -> str | None:
    """The commit of this checkout (or that of `root`), marked if files differ from it; None if it is not a checkout."""
    root = root or Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        return None  # an installed package, perhaps inside another repository
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
