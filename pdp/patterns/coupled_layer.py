"""A coupling as a prunable layer: which tensors its mask multiplies, and which slice of each belongs to which unit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member, Site
from pdp.patterns.coupling import Coupling, input_columns, row_axis


def layer_of(coupling: Coupling, known: dict[str, Layer]) -> Layer:
    """The coupling as a layer: one mask over its units, and the tensors that the mask multiplies.

    `known` are the prunable layers of the model by module name; each of the coupling's outputs is one of them.
    """
    first = known[coupling.name]
    members: list[Member] = []
    tables: dict[tuple, Tensor] = {}

    def add(name: str, module: nn.Module, key: str, axis: int, units: list[int], weighs: bool = False) -> None:
        tensor = module._parameters.get(key)
        if tensor is None:
            return
        # A weight and its bias have the same table: a GPU masks both in one launch if they do.
        belonging = (*units, str(tensor.device))
        if belonging not in tables:
            held = torch.tensor(units, device=tensor.device)
            # Slices of no unit in this coupling get an index behind the last unit, where the mask is 1.
            tables[belonging] = torch.where(held < 0, coupling.units, held)
        table = tables[belonging]
        in_order = units == list(range(coupling.units))
        # An attention may read this weight outside of the module's own forward.
        sites = known[name].sites if key == "weight" and name in known else [Site(module, key, module)]
        members.append(Member(f"{name}.{key}".lstrip("."), sites, weighs, table, in_order, axis, min(units) >= 0))

    for part in coupling.outputs:
        add(part.name, part.module, "weight", row_axis(part.module), part.units, True)
        add(part.name, part.module, "bias", 0, part.units)
    for part in coupling.norms:
        add(part.name, part.module, "weight", 0, part.units)
        add(part.name, part.module, "bias", 0, part.units)
    for vector in coupling.vectors:
        if vector.masked:
            add(vector.name, vector.module, vector.key, vector.axis, vector.units)
    for part in coupling.inputs:
        if part.masked:
            add(part.name, part.module, "weight", 1 - row_axis(part.module), input_columns(part))
    return Layer(first.name, first.kind, first.parameter, first.sites, members, units=coupling.units)
