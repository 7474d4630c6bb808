"""Loads pretrained weights into an image model; refuses those of another model, re-initialises unsuitable heads."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.layers import is_weighted
from pdp.tasks.weight_files import INSTEAD, Found, find_weights, read_weights

ANEW = "starts random"  # the words of a note about a part that has no weights in the file


def load_weights(
    network: nn.Module,
    source: str,
    classes: int,
    heads: Collection[str] = (),
    state: dict[str, Tensor] | None = None,
) -> list[str]:
    """Fills `network` (of `classes` classes) from a file or folder, or from `state`; returns notes on what was done.

    A head is re-initialised if the file has it for another number of classes, or not at all. Heads are the layers in
    `heads` and any last layer with another number of classes. Raises `Refusal` if anything else is missing, unknown or
    of another shape; the message names the first such keys.
    """
    wanted = network.state_dict()
    found: Found = read_weights(source, wanted) if state is None else find_weights(state, source, wanted)
    given = {key: value.to_dense() if value.is_sparse else value for key, value in found.state.items()}
    notes = list(found.notes)
    for name in [name for name, module in network.named_modules() if is_weighted(module)]:
        note = _renewed(name, name in heads, source, given, wanted, classes)
        if note:
            notes.append(note)
    # BatchNorm's batch counters have no effect with a fixed momentum, and old or converted files lack them.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    # Of several names for one tied tensor, safetensors stores only one.
    stored = {wanted[key].data_ptr() for key in given if key in wanted}
    missing = [key for key in missing if not wanted[key].numel() or wanted[key].data_ptr() not in stored]
    unknown = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    kinds = (("lacks", missing), ("has the unknown", unknown), ("has another shape:", shapes))
    faults = [f"{kind} {_first(keys)}" for kind, keys in kinds if keys]
    if faults:
        raise Refusal(f"model.pretrained={source} is of another model: it {'; it '.join(faults)}; {INSTEAD}")
    network.load_state_dict(given, strict=False)
    return notes


def _renewed(
    name: str, known: bool, source: str, given: dict[str, Tensor], wanted: dict[str, Tensor], classes: int
) -> str | None:
    """Keeps a head's random values if the file has it for other classes, or not at all; returns a note on it."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    ours = wanted.get(weight)
    if ours is None or len(ours) != classes:
        return None
    theirs = given.get(weight)
    if theirs is None:
        if not known or bias in given:
            return None
        given |= {key: wanted[key] for key in (weight, bias) if key in wanted}
        return f"{source} has no {name}: it {ANEW}"
    if theirs.dim() != ours.dim() or theirs.shape[1:] != ours.shape[1:] or theirs.shape == ours.shape:
        return None
    given |= {key: wanted[key] for key in (weight, bias) if key in given and key in wanted}
    return f"{name} of {source} is for {theirs.shape[0]} classes, not {ours.shape[0]}: it {ANEW}"


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
