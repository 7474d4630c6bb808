"""The N:M cuts of `pdp.patterns.nm` on a GPU, with one or two launches per layer and without sorting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from pdp.kernels.gpu import grouping
from pdp.kernels.gpu.cuts import CHUNK, MOST_PROGRAMS, TYPES, Cuts, upload
from pdp.kernels.gpu.launching import launch
from pdp.masks.soft import memory_order

_BLOCK = 256  # groups that a program processes
_ROOM = 1024  # most tied candidates in a layer that are ordered without a search through all candidates


@dataclass(frozen=True)
class Grouped:
    """A weight that is dense in memory, the dimension its groups lie along, and how many of its units are pruned."""

    weight: Tensor
    along: int
    pruned: int


class GroupCuts:
    """Finds the cuts of groups of `members` weights, `free` of them prunable, for the same layers at every step."""

    def __init__(self, free: int, members: int):
        self.free, self.members = free, members
        self.selection: Cuts | None = None
        self.laid: list[list[int]] = []
        self.full: _Full | None = None

    def find(self, layers: Sequence[Grouped]) -> list[Tensor]:
        """The cuts of each layer, shaped like its weight with the inputs last and divided by the group size."""
        whole = [layer.pruned == layer.weight.numel() // self.members * self.free for layer in layers]
        together = [one and self._joinable(layer, layers[0]) for one, layer in zip(whole, layers, strict=True)]
        joint = iter(self._find_full([layer for one, layer in zip(together, layers, strict=True) if one]))
        found, partial = [], []
        for layer, own, one in zip(layers, whole, together, strict=True):
            if one:
                found.append(next(joint))
                continue
            cuts = self._empty(layer)
            found.append(cuts.movedim(layer.along, -1))
            if own:
                self._launch(grouping.write_full_cuts, layer, cuts)
            else:
                partial.append((layer, cuts))
        if partial:
            self._find_partial(partial)
        return found

    @staticmethod
    def _joinable(layer: Grouped, first: Grouped) -> bool:
        """Whether its weight can join the launch of `first`: the same dtype, and an address that is a multiple of 16
        bytes.
        """
        return layer.weight.dtype == first.weight.dtype and layer.weight.data_ptr() % 16 == 0

    def _find_full(self, layers: Sequence[Grouped]) -> Sequence[Tensor]:
        """The cuts of layers in which every group loses all the weights that it can, in one launch."""
        if not layers:
            return ()
        places = [(one.weight.data_ptr(), one.weight.shape, one.weight.stride(), one.along) for one in layers]
        if self.full is None or self.full.places != places:
            self.full = _Full(layers, places, [self._empty(one, "meta") for one in layers])
        plan = self.full
        joined = torch.empty(plan.length, dtype=torch.float32, device=layers[0].weight.device)
        launch(
            grouping.write_full_cuts_of_many, plan.chunk_layer.numel(), plan.table, plan.chunk_layer,
            plan.chunk_number, len(layers), joined, FREE=self.free, MEMBERS=self.members, TYPE=plan.kind,
            FLAT=plan.flat, BLOCK=_BLOCK,
        )  # fmt: skip
        return [joined.as_strided(*one) for one in plan.views]

    def _find_partial(self, layers: Sequence[tuple[Grouped, Tensor]]) -> None:
        sizes = [cuts.numel() * self.free for _, cuts in layers]
        # Each layer's cuts start at a multiple of 16 bytes, so that they can be loaded 16 bytes at a time.
        starts = [0, *accumulate(-(-size // 4) * 4 for size in sizes)]
        joined = torch.empty(starts[-1], dtype=torch.float32, device=layers[0][0].weight.device)
        candidates = [joined[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        for (layer, cuts), part in zip(layers, candidates, strict=True):
            self._launch(grouping.write_candidates, layer, part, groups=cuts.numel())
        inner = [layer.weight.stride(layer.along) for layer, _ in layers]
        rows = [layer.weight.shape[layer.along] // self.members for layer, _ in layers]
        if self.selection is None or not self.selection.match(candidates):
            self.selection, self.laid = Cuts(candidates), []
        if self.laid != [inner, rows]:
            self.laid = [inner, rows]
            self.inner, self.rows = upload(np.array(self.laid, np.int32), joined.device).unbind(0)
        chosen = self.selection
        chosen.find(candidates, [layer.pruned for layer, _ in layers])
        last, seen = torch.zeros((2, len(layers)), dtype=torch.int32, device=joined.device).unbind(0)
        places = torch.empty((len(layers), _ROOM), dtype=torch.int32, device=joined.device)
        equals = (self.inner, self.rows, chosen.prefix, chosen.taken, chosen.ties)
        chunks, how = chosen.chunk_layer.numel(), {"FREE": self.free, "ROOM": _ROOM}
        launch(
            grouping.collect_ties, min(chunks, MOST_PROGRAMS), chosen.addresses, chosen.chunk_layer,
            chosen.chunk_number, chosen.sizes, chunks, *equals, seen, places, **how, BLOCK=CHUNK,
        )  # fmt: skip
        launch(
            grouping.find_last_tie, len(layers), chosen.addresses, chosen.sizes, *equals, places, last, **how,
            BLOCK=_BLOCK,
        )  # fmt: skip
        for number, (layer, own) in enumerate(layers):
            row = layer.weight.shape[layer.along] // self.members
            self._launch(grouping.write_partial_cuts, layer, own, row, chosen.prefix, last, number)

    def _launch(self, kernel, layer: Grouped, out: Tensor, *more, groups: int | None = None) -> None:
        groups = groups or out.numel()
        launch(
            kernel, -(-groups // _BLOCK), layer.weight, out, groups, layer.weight.stride(layer.along), *more,
            FREE=self.free, MEMBERS=self.members, BLOCK=_BLOCK,
        )  # fmt: skip

    def _empty(self, layer: Grouped, device: str | torch.device | None = None) -> Tensor:
        """An empty tensor for the cuts, in the memory order of the weight; on its device unless another is given."""
        shape = list(layer.weight.shape)
        shape[layer.along] //= self.members
        order = memory_order(layer.weight)
        return torch.empty(shape, dtype=torch.float32, device=device or layer.weight.device, memory_format=order)


class _Full:
    """Where the weights of these layers are in memory, and at which offsets of one tensor their cuts are stored."""

    def __init__(self, layers: Sequence[Grouped], places: list, cuts: Sequence[Tensor]):
        device = layers[0].weight.device
        self.places = places
        self.kind = TYPES[layers[0].weight.dtype]
        groups = np.array([one.numel() for one in cuts], np.int64)
        inner = [one.weight.stride(one.along) for one in layers]
        self.flat = all(one == 1 for one in inner)
        starts = [0, *accumulate((-(-groups // 4) * 4).tolist())]
        self.length = starts[-1]
        self.table = upload(np.array([[one[0] for one in places], groups, inner, starts[:-1]], np.int64), device)
        chunks = -(-groups // _BLOCK)
        first = np.cumsum(chunks) - chunks
        self.chunk_layer = upload(np.repeat(np.arange(len(layers), dtype=np.int32), chunks), device)
        self.chunk_number = upload((np.arange(chunks.sum()) - np.repeat(first, chunks)).astype(np.int32), device)
        moved = [one.movedim(layer.along, -1) for layer, one in zip(layers, cuts, strict=True)]
        self.views = [(one.shape, one.stride(), start) for one, start in zip(moved, starts, strict=False)]
