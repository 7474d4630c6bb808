"""Checkpoints: everything that decides a run's future, written atomically; the last two are kept."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from pdp.errors import Refusal, Stopped

KEPT = 2


def save_checkpoint(folder: Path, state: dict[str, Any], step: int) -> Path:
    """Writes the state after optimizer step `step` with its digest; raises `Stopped` if the disk fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Stopped(f"the checkpoint folder {folder} cannot be made ({error})") from None
    path = _new_path(folder, step)
    beside = folder / f".{path.name}.{os.getpid()}"
    for leftover in folder.glob(".step-*"):  # left by a write that was killed
        leftover.unlink(missing_ok=True)
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest(beside)
        mark = beside.with_suffix(".sha256")
        mark.write_text(digest + "\n")
        mark.replace(path.with_suffix(".sha256"))
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        for leftover in folder.glob(f".{path.name}*"):
            leftover.unlink(missing_ok=True)
        # If the disk fails, torch's writer raises a second error of its own while closing the file.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise Stopped(f"the checkpoint {path} could not be written ({cause}): the one before it stays good") from None
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def _new_path(folder: Path, step: int) -> Path:
    """A new name for every checkpoint, even of a step that has one, so that a kill between two renames does no harm."""
    stem = f"step-{step:09d}"
    taken = sorted(folder.glob(f"{stem}*.pt"))
    if not taken:
        return folder / f"{stem}.pt"
    last = taken[-1].stem.removeprefix(stem)
    following = f"{last}a" if not last or last.endswith("z") else last[:-1] + chr(ord(last[-1]) + 1)
    return folder / f"{stem}{following}.pt"


def find_newest(folder: Path, report: Callable[[str], None]) -> tuple[Path | None, dict[str, Any] | None]:
    """The newest complete checkpoint and its state on the CPU; damaged ones are reported and the one before is used.

    Raises `Refusal` if there are checkpoints but none is complete.
    """
    paths = sorted(folder.glob("step-*.pt"), reverse=True)
    for path in paths:
        mark = path.with_suffix(".sha256")
        try:
            if mark.read_text().strip() != _digest(path):
                raise ValueError("its digest does not match")
            return path, read_checkpoint(path)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            report(f"checkpoint {path} is damaged ({str(error).splitlines()[0][:120]})")
    if paths:
        raise Refusal(f"no checkpoint in {folder} can be read: rerun=true moves the run aside and starts over")
    return None, None


def load_newest(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of `find_newest`."""
    return find_newest(folder, report)[1]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values, on the CPU; runs no code from the file."""
    return torch.load(path, map_location="cpu", weights_only=True)


def random_state() -> dict[str, Any]:
    """The state of every random number generator in use, as tensors and plain values."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [numpy_state[0], torch.from_numpy(np.asarray(numpy_state[1], dtype=np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Restores `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's state under its dense names as safetensors, atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_model(model, str(beside))
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise Stopped(f"{path} could not be written: {error}") from None


def save_tensors(tensors: dict[str, Tensor], path: Path, described: dict[str, str]) -> None:
    """Writes named tensors with metadata as safetensors, atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, str(beside), metadata=described)
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        beside.unlink(missing_ok=True)
        raise Stopped(f"{path} could not be written: {error}") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads what `save_weights` wrote; raises `Refusal` if it is damaged or of another model."""
    try:
        load_model(model, str(path))
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{path} cannot be read: {error}") from None
    except RuntimeError as error:
        raise Refusal(f"{path} is of another model: {' '.join(str(error).split())[:300]}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    return load_file(str(path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
