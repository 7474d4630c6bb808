"""Reads weights from trainers' files: without running code, from anywhere in a checkpoint, under plain names."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.errors import Refusal

KINDS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
INSTEAD = "set model.pretrained to a weights file of this model, or false"
# Keys under which checkpoints store weights, in order of preference: averaged weights are the ones that trainers
# evaluate.
_PLACES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_state_dict_ema", "ema", "averaged"),
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "module", "weights", "params"),
)
_DEPTH = 3  # nested dictionaries searched
# Wrappers for training (torch.compile, FSDP, checkpointing) insert their own names into the names of the weights.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_COUNTERS = ("n_averaged",)  # entries of torch's AveragedModel that are no weights
_OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Found:
    """The weights of a file, and sentences that say where in the file they were found."""

    state: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def read_weights(path: str, wanted: Collection[str]) -> Found:
    """The weights in a file or folder, on the CPU, under names that match `wanted` best; raises `Refusal`."""
    place = Path(os.path.expanduser(path))
    if place.is_dir():
        return _of_folder(place, path, wanted)
    if not place.is_file():
        raise Refusal(f"model.pretrained={path} does not exist (false, true, a file or a folder is allowed); {INSTEAD}")
    if not place.name.lower().endswith(KINDS):
        raise Refusal(f"model.pretrained={path} must end in {', '.join(KINDS)}; {INSTEAD}")
    return find_weights(_load(place, path), path, wanted)


def _of_folder(folder: Path, said: str, wanted: Collection[str]) -> Found:
    """The weights in a folder in the hub's layout: one file, or several with an index."""
    for name in _OF_A_FOLDER:
        if (folder / name).is_file():
            return find_weights(_load(folder / name, str(folder / name)), said, wanted)
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, UnicodeDecodeError):
                raise Refusal(f"model.pretrained={said}: {index.name} is damaged; {INSTEAD}") from None
            state: dict[str, Any] = {}
            for part in parts:
                if Path(part).name != part or not (folder / part).is_file():
                    raise Refusal(f"model.pretrained={said} lacks {part}, which {index.name} names; {INSTEAD}")
                state |= _load(folder / part, str(folder / part))
            return find_weights(state, said, wanted)
    raise Refusal(f"model.pretrained={said} is a folder without {' or '.join(_OF_A_FOLDER)}: give one that has them")


def _load(place: Path, said: str) -> Any:
    try:
        if place.name.lower().endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(str(place))
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(place, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refusal(f"model.pretrained={said} {_fault(str(error))}; {INSTEAD}") from None
    except Exception as error:  # readers raise many types of exceptions for damaged files
        raise Refusal(
            f"model.pretrained={said} is damaged or no weights file ({type(error).__name__}); {INSTEAD}"
        ) from None


# Types that trainers store beside the weights (their options, a best accuracy). Loading them runs no code.
_HARMLESS: list[Any] = [
    *(argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.Path),
    *(np.ndarray, np.dtype, np._core.multiarray.scalar, np._core.multiarray._reconstruct),  # type: ignore[attr-defined]
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "u1", "?", "U1")),
]


def _fault(error: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)|Unsupported class (\S+)|(?:type|class) <class '([\w.]+)'>", error)
    what = next((one for one in named.groups() if one), "") if named else ""
    if what or "Unsupported" in error or "GLOBAL" in error:
        whole = f"a pickled {what}, which" if what else "a pickle that"
        return (
            f"holds {whole} would run code when it is read: save the weights alone, "
            "torch.save(model.state_dict(), <file>)"
        )
    return "is damaged or no weights file"


def find_weights(loaded: Any, said: str, wanted: Collection[str]) -> Found:
    """Finds the weights in a file's content, whatever is stored beside them; raises `Refusal` if there are none."""
    places = list(_dictionaries(loaded, ()))
    candidates = [(path, _plain(tensors, wanted)) for path, tensors in places]
    # Optimizer states and others hold tensors too; if any candidate shares a name with the model, only such candidates
    # count.
    related = [one for one in candidates if one[1].keys() & set(wanted)] or candidates
    if not related:
        raise Refusal(f"model.pretrained={said} holds no state dict (names to tensors); {INSTEAD}")
    path, state = min(related, key=lambda one: _rank(one[0], one[1], wanted))
    notes = []
    others = [".".join(other) for other, _ in related if other != path]
    if path and others:
        notes.append(f"{said} holds {_words([*others, '.'.join(path)])}: {'.'.join(path)} was taken")
    elif path:
        notes.append(f"of {said} {'.'.join(path)} was taken")
    return Found(state, notes)


def _words(names: list[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def _rank(path: tuple[str, ...], state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[int, int, int]:
    """The sort key of a candidate; the best one is the smallest.

    Candidates with at least half of the model's names come first, then known places in their order of preference, then
    those that share more names with the model.
    """
    shared = len(state.keys() & set(wanted))
    known = min((_PLACES.index(part) for part in path if part in _PLACES), default=len(_PLACES) if path else 0)
    # At least half of the names: in a file with several networks, each may share a few names with the model.
    return (0 if shared * 2 >= len(wanted) else 1, known, -shared)


def _dictionaries(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary of names to tensors inside `value`, with the keys that lead to it."""
    if isinstance(value, torch.nn.Module) or not isinstance(value, Mapping) or len(path) > _DEPTH:
        return []
    tensors = {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, Tensor)}
    found = [(path, tensors)] if tensors else []
    for key, one in value.items():
        if isinstance(key, str):
            found += _dictionaries(one, (*path, key))
    return found


def _plain(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors, with the names of training wrappers removed, and any prefix that all names share."""
    names = set(wanted)
    state = {key: value for key, value in tensors.items() if key not in _COUNTERS or key in names}
    if not state.keys() & names or any(part in _WRAPPERS for key in state for part in key.split(".")):
        state = {_unwrapped(key, names): value for key, value in state.items()}
    while state and not state.keys() & names:
        first = {key.partition(".")[0] for key in state}
        if len(first) > 1 or not all("." in key for key in state):
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state if state.keys() & names else _inside(state, names)


def _unwrapped(key: str, names: set[str]) -> str:
    if key in names:
        return key
    short = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    # A part of the model itself can also be called "module".
    shorter = ".".join(part for part in short.split(".") if part != "module")
    return shorter if shorter in names and short not in names else short


def _inside(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """If other weights (a loss, a teacher) are stored beside the model's: those below the prefix that matches best."""
    best: dict[str, Tensor] = {}
    for prefix in {key.partition(".")[0] for key in state if "." in key}:
        part = {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(f"{prefix}.")}
        if len(part.keys() & names) > len(best.keys() & names):
            best = part
    return best if len(best.keys() & names) * 2 >= len(names) else state
