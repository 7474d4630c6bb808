"""The N:M pattern: of every group of M consecutive inputs N weights stay (for PDP, one cut inside each group)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.errors import Refusal
from pdp.kernels import cpu as host_kernels
from pdp.kernels.gpu import usable
from pdp.layers import Layer, Member, first_convolution, input_axis
from pdp.masks.cut import keep_units
from pdp.masks.soft import lies_dense, memory_order
from pdp.patterns import pattern
from pdp.patterns.options import NmOptions
from pdp.patterns.pattern import Wanted

_COMPARED = 8  # members of a group up to which comparing each pair takes less time than sorting


class Pattern(pattern.Pattern):
    """Groups run along the inputs, separately for each kernel position of a convolution.

    The candidates of a layer are the M - N smallest weights of each group. To prune K units, the K smallest candidates
    are pruned (in the order of groups among equal ones). So each group has its own count from 0 to M - N, and its cut
    is midway between its last pruned and its next weight.
    """

    name = "nm"
    options: NmOptions

    def __init__(self, options: NmOptions):
        super().__init__(options)
        self._ordered: dict[str, tuple[Any, Tensor, Any, int]] = {}

    @property
    def implied_share(self) -> float:
        return 1 - self.options.n / self.options.m

    @property
    def _free(self) -> int:
        return self.options.m - self.options.n

    def gather(self, model: nn.Module, layers: list[Layer], example_input: Any) -> tuple[list[Layer], dict[str, str]]:
        stem = first_convolution(model)
        taken: list[Layer] = []
        dense: dict[str, str] = {}
        for layer in layers:
            reason = self._refuses(layer, stem)
            if reason:
                dense[layer.name] = reason
            else:
                layer.units = layer.weight.numel()
                taken.append(layer)
        return taken, dense

    def _refuses(self, layer: Layer, stem: nn.Module | None) -> str | None:
        module = layer.sites[0].module
        if module is stem:
            return "the stem"
        if isinstance(module, _ConvTransposeNd):
            return "a transposed convolution"
        if isinstance(module, _ConvNd) and module.groups > 1 and layer.weight.shape[1] == 1:
            return "depthwise"
        inputs = layer.weight.shape[input_dim(layer)]
        return f"{inputs} inputs do not divide by {self.options.m}" if inputs % self.options.m else None

    def budget(self, layers: Sequence[Layer], wanted: Wanted) -> list[int]:
        if wanted.path is not None or wanted.allocation == "file":
            raise Refusal(f"allocation=file has no meaning for pattern {self.label}, which is its own budget: drop it")
        return [layer.units // self.options.m * self._free for layer in layers]

    def keep(self, layer: Layer, saliency: Tensor) -> Tensor:
        if not layer.pruned:
            return torch.ones_like(saliency, dtype=torch.bool)
        grouped = self.groups(saliency, layer)
        ranks = ranks_in_groups(grouped)
        counts: Tensor | int = self._free
        if layer.pruned < saliency.numel() // self.options.m * self._free:
            candidates = grouped.sort(dim=-1).values[..., : self._free]  # with NaN last, unlike sorted_columns
            counts = self._counts(candidates, layer.pruned)[..., None]
        # In the saliency's memory order, because a weight that is masked takes its mask's.
        keep = torch.empty_like(grouped, dtype=torch.bool).copy_(ranks >= counts)
        return self.ungroup(keep, layer)

    def cuts(self, layers: Sequence[Layer], held: Sequence[Tensor | None] = ()) -> list[Tensor]:
        if not layers:
            return []
        if any(layer.sharded for layer in layers):
            return [self._cut(layer) for layer in layers]
        if not all(usable(one.weight) and one.weight.device == layers[0].weight.device for one in layers):
            return self._host_cuts(layers, held or [None] * len(layers))
        from pdp.kernels.gpu.groups import GroupCuts, Grouped

        if self._finder is None:
            self._finder = GroupCuts(self._free, self.options.m)
        return self._finder.find([Grouped(layer.weight, input_dim(layer), layer.pruned) for layer in layers])

    def _host_cuts(self, layers: Sequence[Layer], held: Sequence[Tensor | None]) -> list[Tensor]:
        """The cuts of layers in the processor's memory: one kernel for all that lose N of every M."""
        found: list[Tensor | None] = [None for _ in layers]
        full: list[tuple[Tensor, Tensor, int]] = []  # weights, their cuts in the same memory order, inner
        for place, (layer, own) in enumerate(zip(layers, held, strict=True)):
            weight = layer.weight
            if 0 < layer.pruned == weight.numel() // self.options.m * self._free and _host_usable(weight):
                along = input_dim(layer)
                room = self._room(layer, weight, own)
                if room is None:
                    room = host_kernels.found_groups().new_cuts(weight, along, self.options.m)
                    own = room.movedim(along, -1)
                found[place] = own
                full.append((weight, room, weight.stride(along)))
        if full:
            weights, rooms, inner = zip(*full, strict=True)
            torch.autograd.graph.increment_version(rooms)  # a backward may still need what they hold now
            host_kernels.found_groups().write_full_cuts(weights, rooms, inner, self.options.m, self._free)
        return [self._laid(layer) if cuts is None else cuts for layer, cuts in zip(layers, found, strict=True)]

    def _laid(self, layer: Layer) -> Tensor:
        """The layer's cuts in the memory order of its weight, in which the kernels read them."""
        along, weight, cuts = input_dim(layer), layer.weight, self._cut(layer)
        if not lies_dense(weight):
            return cuts
        return cuts.movedim(-1, along).contiguous(memory_format=memory_order(weight)).movedim(along, -1)

    def _room(self, layer: Layer, weight: Tensor, own: Tensor | None) -> Tensor | None:
        """The layer's last cuts in the weight's memory order, where they are that without a copy."""
        last, ordered, strides, _ = self._ordered.get(layer.name, (None, weight, None, 0))
        if own is None or last is not own or strides != weight.stride() or own.data_ptr() != ordered.data_ptr():
            return None
        return ordered if own.is_cpu and own.dtype == torch.float32 and not own.is_inference() else None

    def _cut(self, layer: Layer) -> Tensor:
        values = self.groups(layer.weight.detach(), layer)
        values = (values if values.dtype == torch.float64 else values.float()).abs()
        columns = sorted_columns(values)
        if layer.pruned == columns[0].numel() * self._free:
            below, above = columns[self._free - 1], columns[self._free]
            return below + (above - below) * 0.5
        table = torch.stack(columns[: self._free + 1], -1)
        counts = self._counts(table[..., : self._free], layer.pruned)[..., None]
        below = table.gather(-1, (counts - 1).clamp(min=0))
        above = table.gather(-1, counts)
        return torch.where(counts > 0, below + (above - below) * 0.5, -math.inf)[..., 0]

    def soft_weight(self, layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float) -> Tensor:
        made = self.prepared(member, weight)
        if made is not None:
            return made
        if layer.state["cut"].device != weight.device or not (usable(weight) or _host_usable(weight)):
            return super().soft_weight(layer, member, weight, temperature)
        if not usable(weight) and layer.state["cut"].dtype != torch.float32:  # found while the model was in double
            return super().soft_weight(layer, member, weight, temperature)
        cuts, inner = self._cuts_in_memory(layer, weight)
        if not usable(weight):
            return host_kernels.found_groups().prune_groups(weight, cuts, temperature, self.options.m, inner)
        from pdp.kernels.gpu.masks import device_prune

        return device_prune(weight, cuts, temperature, member.compute_dtype(weight), self.options.m, inner)

    @property
    def _members(self) -> int:
        return self.options.m

    def _part(self, layer: Layer, weight: Tensor, temperature: Tensor | None) -> Any:
        from pdp.kernels.gpu.joint import Part

        cuts, inner = self._cuts_in_memory(layer, weight)
        # A copy would be gone when backward needs it, and the next one would be at another address.
        return Part(weight, cuts, temperature, inner) if cuts.data_ptr() == layer.state["cut"].data_ptr() else None

    def _host_masks(
        self, layers: Sequence[Layer], weights: Sequence[Tensor], temperatures: Sequence[Tensor | float]
    ) -> Any:
        if any(not layer.state["cut"].is_cpu or layer.state["cut"].dtype != torch.float32 for layer in layers):
            return None
        groups = host_kernels.found_groups()
        if groups is None:
            return None
        each = zip(layers, weights, temperatures, strict=True)
        grouped = [groups.Grouped(one, *self._cuts_in_memory(layer, one), float(tau)) for layer, one, tau in each]
        return groups.GroupCuts(grouped, self.options.m)

    def _cuts_in_memory(self, layer: Layer, weight: Tensor) -> tuple[Tensor, int]:
        """The layer's cuts in the memory order of `weight`, and the distance in memory between members of a group."""
        cuts = layer.state["cut"]
        held, ordered, strides, inner = self._ordered.get(layer.name, (None, cuts, None, 0))
        if held is not cuts or strides != weight.stride():
            along = input_dim(layer)
            inner = weight.stride(along)
            ordered = cuts.movedim(-1, along).contiguous(memory_format=memory_order(weight))
            if ordered.data_ptr() == cuts.data_ptr():  # a view stays valid as long as the cuts themselves
                self._ordered[layer.name] = (cuts, ordered, weight.stride(), inner)
        return ordered, inner

    def _counts(self, candidates: Tensor, pruned: int) -> Tensor:
        """k_g: how many of each group's candidates (ascending along the last dimension) are among the smallest."""
        return self._free - keep_units(candidates, pruned).sum(-1)

    def spread(self, values: Tensor, layer: Layer, member: Member, weight: Tensor) -> Tensor:
        """One cut per group, repeated over its M weights; values that are masks over weights are returned unchanged."""
        if values.shape == weight.shape:
            return values
        spread = self.ungroup(values[..., None].expand(*values.shape, self.options.m), layer)
        # In the weight's own memory order, so that the masked weight keeps that order.
        return spread.contiguous() if weight.is_contiguous() else spread

    def groups(self, values: Tensor, layer: Layer) -> Tensor:
        """`values`, shaped like the weight, as (out, kernel positions..., groups, M)."""
        return values.movedim(input_dim(layer), -1).unflatten(-1, (-1, self.options.m))

    def ungroup(self, grouped: Tensor, layer: Layer) -> Tensor:
        """The inverse of `groups`."""
        return grouped.flatten(-2).movedim(-1, input_dim(layer))


def _host_usable(weight: Tensor) -> bool:
    """Whether the CPU's kernels of groups accept this weight."""
    return host_kernels.usable(weight) and host_kernels.found_groups() is not None


def input_dim(layer: Layer) -> int:
    """The dimension of the weight that indexes its inputs."""
    return input_axis(layer.sites[0])


def ranks_in_groups(grouped: Tensor) -> Tensor:
    """Each value's place in its group (along the last dimension), from 0 for the smallest; of equals the first is less.

    NaN is larger than everything, as in a sort.
    """
    members = grouped.shape[-1]
    if members > _COMPARED:
        return grouped.sort(dim=-1, stable=True).indices.argsort(dim=-1)
    columns = grouped.movedim(-1, 0).contiguous().unbind(0)
    numbers = [one == one for one in columns]
    ranks = torch.zeros((members, *grouped.shape[:-1]), dtype=torch.uint8, device=grouped.device)
    for low, high in combinations(range(members), 2):
        larger = (columns[low] <= columns[high]).logical_not_().logical_and_(numbers[high])
        ranks[low].add_(larger)
        ranks[high].add_(larger.logical_not_())
    return ranks.movedim(0, -1)


def sorted_columns(grouped: Tensor) -> list[Tensor]:
    """The values of each group (along the last dimension) in ascending order, as one tensor for each rank."""
    columns = list(grouped.movedim(-1, 0).contiguous().unbind(0))
    if len(columns) & (len(columns) - 1):
        return list(grouped.sort(dim=-1).values.unbind(-1))
    # A sorting network compares whole columns at once; sorting millions of rows of four takes ten times as long.
    for low, high in merge_exchanges(len(columns)):
        columns[low], columns[high] = (
            torch.minimum(columns[low], columns[high]),
            torch.maximum(columns[low], columns[high]),
        )
    return columns


def merge_exchanges(size: int) -> list[tuple[int, int]]:
    """The comparisons of Batcher's odd-even merge sort, a sorting network, for a `size` that is a power of two."""
    pairs = []
    block = 1
    while block < size:
        step = block
        while step:
            for start in range(step % block, size - step, 2 * step):
                for low in range(start, min(start + step, size - step)):
                    if low // (2 * block) == (low + step) // (2 * block):
                        pairs.append((low, low + step))
            step //= 2
        block *= 2
    return pairs


def obeys(weight: Tensor, layer: Layer, n: int, m: int) -> bool:
    """Whether every group of M has at most N nonzero weights."""
    groups = weight.movedim(input_dim(layer), -1).unflatten(-1, (-1, m))
    return bool((groups.count_nonzero(dim=-1) <= n).all())
