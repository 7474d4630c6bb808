"""PDP: parameter-free differentiable pruning, as a library for any training loop. Importing it needs no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pdp.threads  # noqa: F401, it notes forks from now on

if TYPE_CHECKING:
    from pdp.cost import count_macs
    from pdp.errors import Refusal
    from pdp.export.slim import slim
    from pdp.harness import compose, run, sweep
    from pdp.masks.cut import find_cut
    from pdp.masks.soft import soft_mask
    from pdp.pruner.pruner import Pruner

__version__ = "0.1.0"
__all__ = ["Pruner", "Refusal", "compose", "count_macs", "find_cut", "run", "slim", "soft_mask", "sweep"]

_HOMES = {
    "Pruner": "pdp.pruner.pruner",
    "Refusal": "pdp.errors",
    "count_macs": "pdp.cost",
    "compose": "pdp.harness",
    "find_cut": "pdp.masks.cut",
    "run": "pdp.harness",
    "slim": "pdp.export.slim",
    "soft_mask": "pdp.masks.soft",
    "sweep": "pdp.harness",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
