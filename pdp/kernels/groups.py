"""N:M's cuts on a GPU: those of `pdp.patterns.nm`, a launch or two for each layer and no sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pdp.kernels import grouping
from pdp.kernels.cuts import Cuts
from pdp.kernels.launching import launch

_BLOCK = 1024


@dataclass(frozen=True)
class Grouped:
    """A dense weight whose groups lie along one of its dimensions, and how many of its units go."""

    weight: Tensor
    along: int
    pruned: int


class GroupCuts:
    """Finds the cuts of groups of `members` weights, of which `free` can go, for layers that stay the same."""

    def __init__(self, free: int, members: int):
        self.free, self.members = free, members
        self.width = 1 << (members - 1).bit_length()
        self.selection: Cuts | None = None

    def find(self, layers: Sequence[Grouped]) -> list[Tensor]:
        """The cuts of each layer: shaped as the weight is with its inputs last and counted in groups."""
        found = [self._empty(layer) for layer in layers]
        partial = []
        for layer, cuts in zip(layers, found, strict=True):
            if layer.pruned == cuts.numel() * self.free:
                self._launch(grouping.write_full_cuts, layer, cuts)
            else:
                partial.append((layer, cuts))
        if partial:
            self._find_partial(partial)
        return [cuts.movedim(layer.along, -1) for layer, cuts in zip(layers, found, strict=True)]

    def _find_partial(self, layers: Sequence[tuple[Grouped, Tensor]]) -> None:
        sizes = [cuts.numel() * self.free for _, cuts in layers]
        # Each starts where a load of sixteen bytes can.
        starts = [0, *accumulate(-(-size // 4) * 4 for size in sizes)]
        joined = torch.empty(starts[-1], device=layers[0][0].weight.device)
        candidates = [joined[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        for (layer, cuts), part in zip(layers, candidates, strict=True):
            self._launch(grouping.write_candidates, layer, part, groups=cuts.numel())
        if self.selection is None or not self.selection.match(candidates):
            self.selection = Cuts(candidates)
            inner = [layer.weight.stride(layer.along) for layer, _ in layers]
            rows = [layer.weight.shape[layer.along] // self.members for layer, _ in layers]
            self.inner, self.rows = torch.tensor([inner, rows], dtype=torch.int32, device=joined.device).unbind(0)
        chosen = self.selection
        chosen.find(candidates, [layer.pruned for layer, _ in layers])
        last = torch.empty_like(chosen.prefix)
        launch(
            grouping.find_last_tie, len(layers), chosen.addresses, chosen.sizes, self.inner, self.rows, chosen.prefix,
            chosen.taken, chosen.ties, last, FREE=self.free, BLOCK=_BLOCK,
        )  # fmt: skip
        for number, (layer, own) in enumerate(layers):
            row = layer.weight.shape[layer.along] // self.members
            self._launch(grouping.write_partial_cuts, layer, own, row, chosen.prefix, last, number)

    def _launch(self, kernel, layer: Grouped, out: Tensor, *more, groups: int | None = None) -> None:
        groups = groups or out.numel()
        block = max(1, _BLOCK // self.width)
        launch(
            kernel, -(-groups // block), layer.weight, out, groups, layer.weight.stride(layer.along), *more,
            FREE=self.free, MEMBERS=self.members, WIDTH=self.width, BLOCK=block,
        )  # fmt: skip

    def _empty(self, layer: Grouped) -> Tensor:
        """Room for the cuts, in the memory order of the weight."""
        shape = list(layer.weight.shape)
        shape[layer.along] //= self.members
        return torch.empty(shape, device=layer.weight.device, memory_format=memory_order(layer.weight))


def memory_order(weight: Tensor) -> torch.memory_format:
    """In which of the two orders a dense tensor lies."""
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last
