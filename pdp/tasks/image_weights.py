"""Pretrained weights from a file: read without running code, and refused where they are of another model."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from pdp.errors import Refusal

_KINDS = (".safetensors", ".pth", ".pt", ".bin")
_INSTEAD = "set model.pretrained to a weights file of this model, or false"


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; a {"state_dict": ...} around it and a "module." prefix are taken off."""
    place = os.path.expanduser(path)
    if not os.path.isfile(place):
        raise Refusal(f"model.pretrained={path} does not exist (false, true or a file is allowed); {_INSTEAD}")
    if not place.lower().endswith(_KINDS):
        raise Refusal(f"model.pretrained={path} must end in {', '.join(_KINDS)}; {_INSTEAD}")
    try:
        if place.lower().endswith(".safetensors"):
            from safetensors.torch import load_file

            loaded: Any = load_file(place)
        else:
            loaded = torch.load(place, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        runs_code = "GLOBAL" in str(error) or "Unsupported" in str(error)
        fault = "holds a pickle that would run code" if runs_code else "is damaged or no weights file"
        raise Refusal(f"model.pretrained={path} {fault}; {_INSTEAD}") from None
    except Exception as error:  # readers raise many kinds for damaged files
        raise Refusal(
            f"model.pretrained={path} is damaged or no weights file ({type(error).__name__}); {_INSTEAD}"
        ) from None
    return _plain(loaded, path)


def _plain(loaded: Any, source: str) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise Refusal(f"model.pretrained={source} holds no state dict (names to tensors); {_INSTEAD}")
    if all(str(key).startswith("module.") for key in loaded):
        loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
    return loaded


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def load_weights(
    network: nn.Module, source: str, classifier: str | None, state: dict[str, Tensor] | None = None
) -> list[str]:
    """Fills `network` from a file, or from `state`; returns a note where a classifier of another size stays random.

    Raises `Refusal`, naming the first differing keys, where anything else is missing, unknown or of another shape.
    """
    given = dict(read_weights(source) if state is None else _plain(state, source))
    wanted = network.state_dict()
    notes = []
    weight, bias = f"{classifier}.weight", f"{classifier}.bias"
    if weight in given and weight in wanted and given[weight].shape != wanted[weight].shape:
        theirs, ours = given[weight].shape, wanted[weight].shape
        if theirs[1:] == ours[1:]:
            notes.append(f"{classifier} of {source} is for {theirs[0]} classes, not {ours[0]}: it starts random")
            for key in {weight, bias} & given.keys() & wanted.keys():
                given[key] = wanted[key]
    # Counters of batches decide nothing with a fixed momentum, and old or converted files lack them.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    kinds = (("lacks", missing), ("has the unknown", unknown), ("has another shape:", shapes))
    faults = [f"{kind} {_first(keys)}" for kind, keys in kinds if keys]
    if faults:
        raise Refusal(f"model.pretrained={source} is of another model: it {'; it '.join(faults)}; {_INSTEAD}")
    network.load_state_dict(given, strict=False)
    return notes
