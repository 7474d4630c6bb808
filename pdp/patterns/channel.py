"""Channel pruning: a unit is an output channel, or a head in attention, with everything coupled to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pdp.cost import count_macs
from pdp.errors import Refusal
from pdp.layers import Layer, Member, first_convolution
from pdp.masks.cut import cut_at
from pdp.masks.sums import row_sums
from pdp.masks.transforms import in_transform
from pdp.masks.units import along, with_rest
from pdp.patterns import pattern
from pdp.patterns.coupled_layer import layer_of
from pdp.patterns.coupling import Coupling, input_columns, row_axis, slim_densities
from pdp.patterns.find import find_couplings
from pdp.patterns.mac_budget import mac_budget
from pdp.patterns.options import ChannelOptions
from pdp.patterns.pattern import Wanted
from pdp.patterns.rounding import round_budget, unit_step
from pdp.patterns.unit_forward import Forward, masked_alone, units_of
from pdp.patterns.unit_table import UnitTable
from pdp.sharded import whole, write

_PROJECTION = "the heads of nn.MultiheadAttention stay"
_EXPERT = "its channels lie in one parameter with those of all experts, which must keep one size"


class Pattern(pattern.Pattern):
    """One mask per coupling, which multiplies filters, biases, and the BatchNorm's weight and bias.

    A mask on the filters alone would not work in training: scaling a filter before a BatchNorm does not change the
    norm's output, so the mask would get no gradient from the task until the filter is nearly zero. And a pruned channel
    must be zero behind the norm.
    """

    name = "channel"
    needs_example = True
    temperature_mode = "relative"
    kappa = 0.002
    options: ChannelOptions

    def __init__(self, options: ChannelOptions):
        super().__init__(options)
        self.couplings: dict[str, Coupling] = {}
        self.macs: dict[str, int] = {}
        self._known_tables: dict[tuple, UnitTable] = {}
        self._measured: dict[UnitTable, Tensor] | None = None  # s^2 by table, while the weights do not change

    @property
    def target_unit(self) -> str:
        return "mac" if self.options.target == "macs" else "channel"

    def gather(self, model: nn.Module, layers: list[Layer], example_input: Any) -> tuple[list[Layer], dict[str, str]]:
        if example_input is None:
            raise Refusal("pattern=channel follows the model through a forward: give example_input=<a batch of one>")
        self._known_tables.clear()
        known = {layer.name: layer for layer in layers}
        stem = first_convolution(model)
        taken: list[Layer] = []
        dense: dict[str, str] = {}
        for coupling in find_couplings(model, example_input):
            reason = self._refuses(coupling, known, stem)
            if reason is None:
                taken.append(layer_of(coupling, known))
                self.couplings[coupling.name] = coupling
            else:
                dense |= {part.name: reason for part in coupling.outputs if part.name in known}
        masked = {part.name for one in self.couplings.values() for part in one.outputs}
        rest = [layer for name, layer in known.items() if name not in masked and name not in dense]
        dense |= {layer.name: _EXPERT if layer.stacked else _PROJECTION for layer in rest}
        frame = count_macs(model, example_input)
        self.macs = dict(zip(frame.name, (int(one) for one in frame.macs), strict=True))
        return taken, dense

    def _refuses(self, coupling: Coupling, known: dict[str, Layer], stem: nn.Module | None) -> str | None:
        if coupling.refused:
            return coupling.refused
        for part in coupling.outputs:
            if part.name not in known or len(known[part.name].sites) > 1:
                return f"coupled with {part.name}, which stays as it is"
            if part.module is stem and not self.options.prune_stem:
                return "the stem, or coupled with it" if len(coupling.outputs) > 1 else "the stem"
        return None if coupling.units > 1 else "a single unit"

    def budget(self, layers: Sequence[Layer], wanted: Wanted) -> list[int]:
        def compared(layer: Layer) -> Tensor:
            values = wanted.saliency(layer)
            if not self.options.relative_budget or wanted.comparable:
                return values
            # In float64, so that units equal to their layer's mean are exactly equal across layers.
            return (values.double() / values.double().mean().clamp(min=1e-30)).float()

        if self.options.target == "channels" or wanted.allocation == "file":
            budget = super().budget(layers, replace(wanted, saliency=compared))
        else:
            budget = mac_budget(
                layers,
                wanted.allocation,
                wanted.share,
                compared,
                lambda counts: self._slim_macs(layers, counts),
                sum(self.macs.values()),
            )
        if self.options.round_to == 1 or wanted.allocation == "file" or wanted.share is None:
            return budget
        steps = [unit_step(self.couplings[layer.name], self.options.round_to) for layer in layers]
        return round_budget(layers, budget, steps, lambda counts: self._gone(layers, counts), wanted.share)

    def _slim_macs(self, layers: Sequence[Layer], counts: Sequence[int]) -> float:
        densities = self.densities(layers, counts)
        return sum(macs * densities.get(name, 1.0) for name, macs in self.macs.items())

    def reached(self, layers: Sequence[Layer]) -> float:
        return self._gone(layers, [layer.pruned for layer in layers])

    def _gone(self, layers: Sequence[Layer], counts: Sequence[int]) -> float:
        """The share that a budget prunes, of what `target_unit` names."""
        if self.options.target == "channels":
            return sum(counts) / sum(layer.units for layer in layers)
        return 1 - self._slim_macs(layers, counts) / sum(self.macs.values())

    def densities(self, layers: Sequence[Layer], counts: Sequence[int]) -> dict[str, float]:
        return slim_densities([self.couplings[layer.name] for layer in layers], list(counts))

    def _square(self, layer: Layer) -> Tensor:
        """s^2 of each unit: the mean (saliency l2: the sum) of the squares of all its weights; (units,), float32."""
        return (self._sums(layer, Tensor.square) * self._scale(layer)).float()

    def _sums(self, layer: Layer, of: Callable[[Tensor], Tensor]) -> Tensor:
        """The sum of `of` (an elementwise function) over each unit's weights; (units,), float64."""
        total = torch.zeros(layer.units, dtype=torch.float64, device=layer.stored.device)
        for member in layer.members:
            if member.weighs:
                sums = row_sums(member.rows(member.tensor.detach()), of)
                units = units_of(member, total)
                total = total + (sums if units is None else _of_units(total, units, sums))
        return total

    def _scale(self, layer: Layer) -> float:
        if self.options.saliency == "l2":
            return 1.0
        return layer.units / sum(_weighing(layer, member) for member in layer.members if member.weighs)

    def saliency(self, layer: Layer) -> Tensor:
        if self.options.saliency == "l1":
            return self._sums(layer, Tensor.abs).float()
        return self._square(layer).sqrt()

    def alive(self, layer: Layer) -> Tensor:
        """Which units are not zero, counting everything coupled to them: filters, biases, norms."""
        some = torch.zeros(layer.units, device=layer.stored.device)
        for member in layer.members:
            rows = member.rows(member.tensor.detach())
            counts = (rows != 0).reshape(len(rows), -1).sum(1).float()
            units = units_of(member, some)
            some = some + (counts if units is None else _of_units(some, units, counts))
        return some > 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        self._measured = {}
        try:
            with super().measuring():
                yield
        finally:
            self._measured = None

    def forget(self) -> None:
        super().forget()
        self._known_tables.clear()

    def cuts(self, layers: Sequence[Layer], held: Sequence[Tensor | None] = ()) -> list[Tensor]:
        if self.options.saliency == "l1":
            return [cut_at(self.saliency(layer), layer.pruned).to(layer.stored.device) for layer in layers]
        found: dict[str, Tensor] = {}
        for table in self._tables(layers):
            cuts = table.cuts(self._squares(table)).unbind()
            found |= {layer.name: cut for layer, cut in zip(table.layers, cuts, strict=True)}
        return [found[layer.name] for layer in layers]

    def soft_states(
        self, layers: Sequence[Layer], cuts: Sequence[Tensor], temperatures: Sequence[Tensor] | float
    ) -> dict[str, list[Tensor]]:
        found: dict[str, Tensor] = {}
        cut_of = dict(zip([layer.name for layer in layers], cuts, strict=True))
        for table in self._tables(layers):
            held = torch.stack([cut_of[layer.name] for layer in table.layers])
            masks = table.masks(self._squares(table), held, _stacked(temperatures, layers, table))
            found |= {layer.name: mask for layer, mask in zip(table.layers, table.split(masks), strict=True)}
        return {"mask": [found[layer.name] for layer in layers]}

    def _squares(self, table: UnitTable) -> Tensor:
        if self._measured is None:
            return table.squares()
        if table not in self._measured:
            self._measured[table] = table.squares()
        return self._measured[table]

    def _tables(self, layers: Sequence[Layer]) -> list[UnitTable]:
        """The units of the layers, one table per device; cached, because every step asks for the same ones."""
        shares: dict[torch.device, list[Layer]] = {}
        for layer in layers:
            shares.setdefault(layer.stored.device, []).append(layer)
        return [self._table(device, ones) for device, ones in shares.items()]

    def _table(self, device: torch.device, layers: list[Layer]) -> UnitTable:
        key = (device, *(id(layer) for layer in layers))  # ids are safe as keys: the tables keep the layers alive
        if key not in self._known_tables:
            if len(self._known_tables) >= 4:  # while the share rises, layers join the set one by one
                self._known_tables.clear()
            self._known_tables[key] = UnitTable(layers, [self._scale(layer) for layer in layers])
        return self._known_tables[key]

    def spread(self, values: Tensor, layer: Layer, member: Member, weight: Tensor) -> Tensor:
        return member.rows(along(values, units_of(member, values), member.rows(weight)))

    def begin_forward(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float) -> None:
        # What is whole only while its own block computes cannot be masked with all others.
        tables = [] if any(layer.sharded for layer in layers) else self._tables(layers)
        self._forwards.append(Forward([(table, _stacked(temperatures, layers, table)) for table in tables]))

    def soft_weight(self, layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float) -> Tensor:
        shared = self.prepared(member, weight)
        if shared is not None:
            return shared
        return masked_alone(layer, member, weight, temperature, self._scale(layer))

    def prepared(self, member: Member, weight: Tensor) -> Tensor | None:
        return None if in_transform() else super().prepared(member, weight)

    def finish(self, model: nn.Module, layer: Layer, keep: Tensor) -> None:
        """Zeroes the inputs that read pruned channels, which only multiply zeros: counts become the slim model's."""
        for part in self.couplings[layer.name].inputs:
            stored: Any = part.module.weight
            weight = whole(stored)
            units = torch.tensor(input_columns(part), device=weight.device)
            gone = (units >= 0) & ~keep[units.clamp(min=0)]
            weight.transpose(0, 1 - row_axis(part.module)).masked_fill_(
                gone.reshape(-1, *[1] * (weight.dim() - 1)), 0.0
            )
            if weight is not stored:
                write(stored, weight)

    def weights(self, layer: Layer) -> dict[str, Tensor]:
        one = self.couplings[layer.name]
        return {part.name: whole(part.module.weight) for part in (*one.outputs, *one.inputs)}


def _of_units(values: Tensor, units: Tensor, sums: Tensor) -> Tensor:
    """Sums of slices added up by unit; those of no unit are dropped."""
    return with_rest(torch.zeros_like(values), 0.0).index_add(0, units, sums)[:-1]


def _weighing(layer: Layer, member: Member) -> int:
    """How many of a tensor's weights belong to units."""
    if member.whole or member.units is None:
        return member.stored.numel()
    return member.stored.numel() // len(member.units) * int((member.units < layer.units).sum())


def _stacked(temperatures: Sequence[Tensor] | float, layers: Sequence[Layer], table: UnitTable) -> Tensor | float:
    """The temperatures of the table's layers, (layers,), or the single one for all layers."""
    if not isinstance(temperatures, Sequence):
        return temperatures
    taus = dict(zip([layer.name for layer in layers], temperatures, strict=True))
    return torch.stack([taus[layer.name] for layer in table.layers])
