"""Counts the pruned units that came back above the cut between the ends of two epochs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pdp.pruner.pruner import Pruner


class Revived:
    """Remembers what was pruned at the last look, one bit per entry of a hard mask."""

    def __init__(self) -> None:
        self._pruned: dict[str, tuple[np.ndarray, int]] = {}  # packed bits, and their number

    @torch.no_grad()
    def look(self, pruner: Pruner) -> dict[str, Any]:
        """Fractions of units pruned at the last look and kept now: `revived` of all, `layer_revived` by layer."""
        fractions: dict[str, float] = {}
        for layer in pruner.layers:
            before, entries = self._pruned.pop(layer.name, (np.zeros(0, np.uint8), 1))
            if layer.active:
                keep = pruner.method.keep(layer).reshape(-1).cpu().numpy()
                self._pruned[layer.name] = np.packbits(~keep), keep.size
                if before.size:
                    before = before & np.packbits(keep)
            # An entry of the mask is a unit, or one of several equal parts of a unit.
            fractions[layer.name] = int(np.bitwise_count(before).sum(dtype=np.int64)) / entries
        units = sum(layer.units for layer in pruner.layers)
        revived = sum(fractions[layer.name] * layer.units for layer in pruner.layers) / units
        return {"revived": revived, "layer_revived": fractions}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The packed masks by layer, as uint8 tensors."""
        return {
            name: {"pruned": torch.from_numpy(bits), "entries": entries}
            for name, (bits, entries) in self._pruned.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Restores `state_dict`."""
        self._pruned = {name: (one["pruned"].numpy(), one["entries"]) for name, one in state.items()}
