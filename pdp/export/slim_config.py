"""A slim transformer's configuration: the one from which transformers builds a model of exactly these sizes, if any.

If every layer has lost the same number of heads and of hidden units, a few numbers of the configuration suffice.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pdp.transformer_parts import is_transformer

_HIDDEN = re.compile(r"inner|intermediate|ffn|d_ff|^dff$|^hidden_dim$|expansion", re.I)
_HEADS = re.compile(r"head", re.I)
_NO_HEADS = re.compile(r"dim|size|group|scale|drop|type|d_head|window|layer", re.I)


def fit_configuration(model: Any, removed: Mapping[str, tuple[int, int]], heads: set[str]) -> bool:
    """Changes the numbers in `model.config` so that they describe the slim `model`; returns whether that is possible.

    `removed` gives (units removed, units in total) by coupling; `heads` are the couplings whose units are heads.
    """
    if not is_transformer(model):
        return False
    shapes = _shapes(model)
    for changes in _changes(model.config, removed, heads):
        config = copy.deepcopy(model.config)
        for key, value in changes.items():
            setattr(config, key, value)
        try:
            with torch.device("meta"):
                built = type(model)(config)
        except Exception:  # transformers may raise anything for sizes that do not fit together
            continue
        if _shapes(built) == shapes:
            for key, value in changes.items():
                setattr(model.config, key, value)
            return True
    return False


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}


def _changes(config: Any, removed: Mapping[str, tuple[int, int]], heads: set[str]) -> Iterator[dict[str, Any]]:
    plain = {key: value for key, value in vars(config).items() if type(value) is int or value is None}
    hidden: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    for name, (gone, units) in removed.items():
        for key, value in plain.items():
            if name in heads and value and _counts_heads(key) and value % units == 0:
                counts[key] = value // units * (units - gone)
            elif name not in heads and _HIDDEN.search(key) and value in (units, None):
                hidden[key] = units - gone
    if counts:
        counts |= _head_size(config)
    filled = {key: value for key, value in hidden.items() if plain[key] is not None}
    for some in (hidden, filled, counts, hidden | counts, filled | counts):
        if some:
            yield some


def _counts_heads(key: str) -> bool:
    return bool(_HEADS.search(key)) and not _NO_HEADS.search(key)


def _head_size(config: Any) -> dict[str, int]:
    """The size of a head, to be set where it would otherwise be computed from the number of heads."""
    width, count = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if getattr(config, "head_dim", None) is None and isinstance(width, int) and isinstance(count, int):
        return {"head_dim": width // count}
    return {}
