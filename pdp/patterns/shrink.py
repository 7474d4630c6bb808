"""Channels taken out of a model physically: every slice of every tensor that goes with a unit, and the sizes named."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pdp.layers import is_conv1d
from pdp.patterns.attention import set_heads
from pdp.patterns.coupling import Coupling, Vector, input_columns, row_axis
from pdp.patterns.response_norm import is_response_norm, rescale

# What a module says of its sizes: plain numbers.
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


OWN_CONFIG = "_own_config"  # the mark of a module whose configuration is no other's


def sizes_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """By module what it says of its sizes, and the constant of a norm that depends on them."""
    return {
        name: {key: value for key in SIZES if isinstance(value := getattr(module, key, None), int)}
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
    """The units whose removal changes nothing: all that makes them is zero, and what would read another value."""
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
    """Of these units those that can go while every module keeps a channel: a branch may lose all that it makes."""
    gone = set(gone)
    parts: tuple[Any, ...] = (*coupling.outputs, *coupling.norms, *coupling.vectors, *coupling.inputs)
    for units in (set(part.units) for part in parts):
        if units <= gone:
            gone.discard(max(units))
    return gone


@torch.no_grad()
def remove(model: nn.Module, gone: Sequence[tuple[Coupling, set[int]]]) -> None:
    """Takes these units of couplings out of `model`; tensors are replaced, never written.

    All at once: a reader, a norm or a vector may have channels of several.
    """
    outputs, inputs, norms = _Cut(), _Cut(), _Cut()
    slices: dict[tuple[str, str], tuple[Vector, set[int]]] = {}
    for coupling, units in gone:
        for part in coupling.outputs:
            outputs.add(part.name, part.units, units)
        for part in coupling.inputs:
            inputs.add(part.name, part.units, units)
        for part in coupling.norms:
            norms.add(part.name, part.units, units)
        for vector in coupling.vectors:
            _, places = slices.setdefault((vector.name, vector.key), (vector, set()))
            places |= {index for index, unit in enumerate(vector.units) if unit in units}
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


class _Cut:
    """By module which of its channels go."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, set[int]]] = {}

    def add(self, name: str, units: list[int], gone: set[int]) -> None:
        """Those of these units, where `units` holds each channel's."""
        _, places = self._held.setdefault(name, (len(units), set()))
        places |= {index for index, unit in enumerate(units) if unit in gone}

    def kept(self) -> Iterator[tuple[str, list[int]]]:
        """Each module's name and the channels that stay, where any goes."""
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
    # The same channels of each group, whose columns they share.
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
