"""A copy of a pruner: independent of the first, with hooks of its own on a copy of the model."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from pdp.pruner.guard import Guard
from pdp.pruner.parts import Parts
from pdp.pruner.shadow import hook, strip

Copied = TypeVar("Copied", bound=Parts)


def twin_of(pruner: Copied, memo: dict[int, Any]) -> Copied:
    """The copy for `copy.deepcopy`; the model itself may be copied along with it."""
    memo[id(pruner)] = twin = type(pruner).__new__(type(pruner))
    hooked, handles, pruner.handles = bool(pruner.handles), pruner.handles, []
    try:
        for key, value in vars(pruner).items():
            if key != "guard":
                setattr(twin, key, copy.deepcopy(value, memo))
    finally:
        pruner.handles = handles
    twin.pattern.forget()
    if pruner.method.prunes:
        twin.guard = Guard(twin.model, twin.layers)
    if hooked:
        strip(twin.model)
        twin.handles = hook(twin.model, twin.hooked_layers, twin.method, twin.quantizer)
    return twin
