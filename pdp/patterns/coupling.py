"""Channels of a model that can only be removed together: by residual sums, norms, grouped convolutions, or heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.layers import is_conv1d


@dataclass
class Part:
    """A module of a coupling; `units` holds the unit of each of its channels, -1 for a channel of another coupling."""

    name: str
    module: nn.Module
    units: list[int]
    masked: bool = False  # of a reader: whether it reads something other than zero from a pruned unit


@dataclass
class Vector:
    """A parameter or buffer whose slices along `axis` belong to units; `masked` if they must be zero with them."""

    name: str
    module: nn.Module
    key: str
    axis: int
    units: list[int]
    masked: bool

    @property
    def tensor(self) -> Tensor:
        """The stored tensor."""
        held = self.module._parameters.get(self.key)
        return self.module._buffers[self.key] if held is None else held  # type: ignore[return-value]


@dataclass
class Count:
    """A module's own number of some channels, or one of its list of such, and the unit of each of them."""

    name: str
    key: str
    index: int | None
    units: list[int]


@dataclass
class Coupling:
    """Channels that share a mask: `outputs` make them, `norms` and `vectors` pass them on, `inputs` read them.

    `counts` are numbers in modules that depend on how many there are.
    """

    units: int
    outputs: list[Part] = field(default_factory=list)
    norms: list[Part] = field(default_factory=list)
    inputs: list[Part] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    heads: str | None = None  # if the units are an attention's heads: the module that holds their number
    refused: str | None = None  # why the channels must stay, if they must
    # Whole numbers of modules that follow the units: the module, what it calls one, its value for each unit.
    settings: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the first layer that makes the channels."""
        return self.outputs[0].name


def row_axis(module: nn.Module) -> int:
    """The dimension of a layer's weight that indexes its outputs."""
    return 1 if is_conv1d(module) or isinstance(module, _ConvTransposeNd) else 0


def input_columns(part: Part) -> list[int]:
    """The unit of each slice of a reader's weight along its inputs; of a grouped convolution those of one group."""
    groups = part.module.groups if isinstance(part.module, _ConvNd) else 1
    return part.units[: len(part.units) // groups]


def places_of(units: list[int], gone: set[int]) -> np.ndarray:
    """Which channels, as numbers, belong to these units."""
    return np.isin(units, list(gone)).nonzero()[0]


def slim_densities(couplings: list[Coupling], pruned: list[int]) -> dict[str, float]:
    """The share of its weights that each layer keeps if so many units of each coupling are removed."""
    kept: dict[str, list[float]] = {}
    for one, count in zip(couplings, pruned, strict=True):
        for side, parts in enumerate((one.outputs, one.inputs)):
            for part in parts:
                own = sum(unit >= 0 for unit in part.units) / len(part.units)
                kept.setdefault(part.name, [1.0, 1.0])[side] -= own * count / one.units
    return {name: outputs * inputs for name, (outputs, inputs) in kept.items()}


def batch_norm(module: nn.Module) -> bool:
    """Whether this is a BatchNorm with weight and bias."""
    return isinstance(module, _BatchNorm) and module.weight is not None


def describe(value: Any) -> str:
    """An error in one line."""
    return " ".join(f"{type(value).__name__}: {value}".split())[:200]
