"""Removes channels from a model physically: every slice of every tensor that belongs to a unit, and stated sizes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pdp.layers import is_conv1d
from pdp.patterns.attention import set_heads
from pdp.patterns.counts import lowered
from pdp.patterns.coupling import Coupling, Vector, input_columns, places_of, row_axis
from pdp.patterns.response_norm import is_response_norm, rescale

# The attributes in which modules state their sizes as plain numbers.
SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_groups",
    "num_parameters",
    "nf",
    "nx",
    "num_heads",
    "attn_dim",
    "split_size",
    "num_attention_heads",
    "all_head_size",
)


OWN_CONFIG = "_own_config"  # marks a module whose configuration is shared with no other module


def sizes_of(model: nn.Module, couplings: Sequence[Coupling] = ()) -> dict[str, dict[str, Any]]:
    """The sizes that each module states, and the constant of a norm that depends on them, by module name."""
    named: dict[str, dict[str, Any]] = {}
    for count in (count for one in couplings for count in one.counts):
        value = getattr(model.get_submodule(count.name), count.key)
        named.setdefault(count.name, {})[count.key] = value if isinstance(value, int) else list(value)
    return {
        name: {key: value for key in SIZES if isinstance(value := getattr(module, key, None), int)}
        | named.get(name, {})
        | {key: value for key, value in vars(module).items() if type(value) is int}
        | {f"config.{key}": value for key, value in _own_config(module).items() if type(value) is int}
        | ({"eps": module.eps} if is_response_norm(module) and hasattr(module, "eps") else {})
        for name, module in model.named_modules()
    }


def _own_config(module: Any) -> dict[str, Any]:
    return vars(module.config) if vars(module).get(OWN_CONFIG) else {}


def set_size(model: nn.Module, path: str, key: str, value: int) -> None:
    """Sets a module's number; one of its configuration in a copy that is the module's own."""
    module: Any = model.get_submodule(path)
    if key.startswith("config."):
        if not vars(module).get(OWN_CONFIG):
            module.config = copy.deepcopy(module.config)
            module.__dict__[OWN_CONFIG] = True
        module = module.config
    setattr(module, key.rpartition(".")[2], value)


def zero_units(coupling: Coupling) -> set[int]:
    """The units whose removal changes nothing.

    All that makes them must be zero, and also the inputs that would read something other than zero from them.
    """
    alive = torch.zeros(coupling.units, dtype=torch.bool)

    def use(rows: Tensor, units: list[int]) -> None:
        some = (rows != 0).reshape(len(units), -1).any(1).cpu() & (torch.tensor(units) >= 0)
        alive[torch.tensor(units)[some]] = True

    for part in coupling.outputs:
        use(part.module.weight.transpose(0, row_axis(part.module)), part.units)  # type: ignore[operator]
        if part.module._parameters.get("bias") is not None:
            use(part.module.bias, part.units)  # type: ignore[arg-type]
    for part in coupling.norms:
        for key in ("weight", "bias"):
            tensor = part.module._parameters.get(key)
            if tensor is not None:
                use(tensor, part.units)
    for vector in coupling.vectors:
        if vector.masked:
            use(vector.tensor.transpose(0, vector.axis), vector.units)
    for part in coupling.inputs:
        if part.masked:
            use(part.module.weight.transpose(0, 1 - row_axis(part.module)), input_columns(part))  # type: ignore[operator]
    return set((~alive).nonzero().reshape(-1).tolist())


def leaving_some(coupling: Coupling, gone: set[int]) -> set[int]:
    """Those of the units in `gone` that can be removed while every module keeps at least one channel."""
    gone = set(gone)
    parts: tuple[Any, ...] = (
        *coupling.outputs,
        *coupling.norms,
        *coupling.vectors,
        *coupling.inputs,
        *coupling.counts,
    )
    for units in dict.fromkeys(tuple(part.units) for part in parts):
        if gone.issuperset(units):
            gone.discard(max(units))
    return gone


@torch.no_grad()
def remove(model: nn.Module, gone: Sequence[tuple[Coupling, set[int]]]) -> None:
    """Removes these units of couplings from `model`; tensors are replaced, never written.

    All couplings at once, because a reader, a norm or a vector may have channels of several.
    """
    outputs, inputs, norms = _Cut(), _Cut(), _Cut()
    slices: dict[tuple[str, str], tuple[Vector, set[int]]] = {}
    counts: dict[tuple[str, str, int | None], tuple[int, set[int]]] = {}
    for coupling, units in gone:
        for part in coupling.outputs:
            outputs.add(part.name, part.units, units)
        for part in coupling.inputs:
            inputs.add(part.name, part.units, units)
        for part in coupling.norms:
            norms.add(part.name, part.units, units)
        for vector in coupling.vectors:
            _, places = slices.setdefault((vector.name, vector.key), (vector, set()))
            places.update(places_of(vector.units, units).tolist())
        for count in coupling.counts:
            counts.setdefault((count.name, count.key, count.index), (len(count.units), set()))[1].update(
                places_of(count.units, units).tolist()
            )
        for path, key, size in coupling.settings:
            set_size(model, path, key, size * (coupling.units - len(units)))
        if coupling.heads is not None and not coupling.settings:
            set_heads(model.get_submodule(coupling.heads), coupling.units - len(units))
    for name, kept in outputs.kept():
        _keep_outputs(model.get_submodule(name), kept)
    for name, kept in inputs.kept():
        _keep_inputs(model.get_submodule(name), kept)
    for name, kept in norms.kept():
        norm: Any = model.get_submodule(name)
        for key in ("weight", "bias", "running_mean", "running_var"):
            _select(norm, key, kept, 0)
        norm.num_features = len(kept)
    for vector, places in slices.values():
        kept = [index for index in range(len(vector.units)) if index not in places]
        _keep_slices(model.get_submodule(vector.name), vector, kept)
    for (name, key, index), (size, places) in counts.items():
        if places:
            lowered(model.get_submodule(name), key, index, size - len(places))


class _Cut:
    """The channels to remove from each module."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, set[int]]] = {}

    def add(self, name: str, units: list[int], gone: set[int]) -> None:
        """Adds the channels whose unit is in `gone`; `units` holds the unit of each channel."""
        _, places = self._held.setdefault(name, (len(units), set()))
        places.update(places_of(units, gone).tolist())

    def kept(self) -> Iterator[tuple[str, list[int]]]:
        """Each module that loses channels, with the channels that stay."""
        for name, (size, places) in self._held.items():
            if places:
                yield name, [index for index in range(size) if index not in places]


def _keep_outputs(module: Any, kept: list[int]) -> None:
    before = module.weight.shape[row_axis(module)]
    _select(module, "weight", kept, row_axis(module))
    _select(module, "bias", kept, 0)
    if isinstance(module, nn.Linear):
        module.out_features = len(kept)
    elif is_conv1d(module):
        module.nf = len(kept)
    else:
        if module.groups == module.in_channels and module.groups > 1:
            module.groups = module.in_channels = len(kept) // (before // module.groups)
        module.out_channels = len(kept)


def _keep_inputs(module: Any, kept: list[int]) -> None:
    groups = module.groups if isinstance(module, _ConvNd) else 1
    # The groups share the columns of the weight, so the same channels stay in each group.
    _select(module, "weight", kept[: len(kept) // groups], 1 - row_axis(module))
    if isinstance(module, _ConvNd):
        module.in_channels = len(kept)
    elif is_conv1d(module):
        module.nx = len(kept)
    else:
        module.in_features = len(kept)


def _keep_slices(module: Any, vector: Vector, kept: list[int]) -> None:
    _select(module, vector.key, kept, vector.axis)
    if isinstance(module, nn.GroupNorm):
        module.num_channels = module.num_groups = len(kept)
    elif isinstance(module, nn.Embedding) and vector.axis == 1:
        module.embedding_dim = len(kept)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(kept)
    elif is_response_norm(module):
        rescale(module, vector.key, len(vector.units) / len(kept))


def _select(module: nn.Module, key: str, kept: list[int], axis: int) -> None:
    tables: Any = (module._parameters, module._buffers)
    for table in tables:
        tensor = table.get(key)
        if tensor is not None:
            smaller: Any = tensor.index_select(axis, torch.tensor(kept, dtype=torch.long, device=tensor.device))
            if isinstance(tensor, nn.Parameter):
                smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
            table[key] = smaller
