"""Finds by trial the numbers of an attention that depend on its number of heads, as libraries name them differently.

Without some of its heads an attention must compute the same as with zeros in their place. Sets of its integer
attributes are changed, the smallest sets first, until it does.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pdp.layers import is_weighted
from pdp.patterns.coupling import Coupling, input_columns, row_axis

Setting = tuple[str, str, int]

_COUNT = re.compile(r"head|kv_groups", re.I)
_NO_COUNT = re.compile(r"dim|size|width|d_head|d_kv|group|rep|drop|scale|idx|index|layer|bucket|max|window", re.I)
_GROUPS = re.compile(r"group|n_rep|rep$", re.I)
_HEAD_SIZE = re.compile(r"^(attention_|attn_)?head_?(dim|size)$", re.I)
_MODEL_SIZE = re.compile(r"embed|hidden|model|^dim$", re.I)
_NEAR = 1e-4  # relative to the largest output, in float32


def find_settings(
    module: nn.Module, coupling: Coupling, run: Callable[[nn.Module, set[int]], Any]
) -> list[Setting] | None:
    """The numbers that must change with the units, each with its value per unit; None if no set of numbers works.

    `coupling` has the attention under the empty name; `run` calls it without some units.
    """
    from pdp.patterns.shrink import remove, set_size

    gone = set(range(1, coupling.units, 2))
    try:
        with torch.no_grad():
            drawn = _drawn(module)  # heads that are zero already would show no difference
            masked = copy.deepcopy(drawn)
            _zero(masked, coupling, gone)
            wanted = _numbers(run(masked, set()))
            remove(smaller := copy.deepcopy(drawn), [(_renamed(coupling), gone)])
    except Exception:
        return None
    for settings in _plans(module, coupling):
        trial = copy.deepcopy(smaller)
        for path, key, size in settings:
            set_size(trial, path, key, size * (coupling.units - len(gone)))
        try:
            with torch.no_grad():
                found = _numbers(run(trial, gone))
        except Exception:  # sizes may not fit together
            continue
        if _alike(wanted, found):
            return settings
    return None


def _drawn(module: nn.Module) -> nn.Module:
    """A copy whose layers have random weights."""
    generator = torch.Generator().manual_seed(0)
    drawn = copy.deepcopy(module)
    for one in drawn.modules():
        for key, tensor in one._parameters.items():
            if is_weighted(one) and tensor is not None:
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.data.copy_(noise * (tensor[0].numel() ** -0.5 if key == "weight" else 0.3))
    return drawn


def _renamed(coupling: Coupling) -> Coupling:
    """The same coupling with names relative to the attention."""
    one = copy.copy(coupling)
    for side in ("outputs", "inputs", "vectors"):
        parts = [copy.copy(part) for part in getattr(coupling, side)]
        for part in parts:
            part.name = part.name.strip(".")
        setattr(one, side, parts)
    one.heads, one.settings = None, []
    return one


def _plans(module: nn.Module, coupling: Coupling) -> Iterator[list[Setting]]:
    """Sets of numbers to change, in the order in which they are tried."""
    counts: list[Setting] = []
    groups: list[Setting] = []
    widths: list[Setting] = []
    own: list[Setting] = []
    makers = {part.name.strip(".") for part in (*coupling.outputs, *coupling.inputs)}
    sizes = {len(part.units) for part in (*coupling.outputs, *coupling.inputs)}
    for path, one in module.named_modules():
        if path in makers or is_weighted(one):
            continue
        for key, value in vars(one).items():
            if type(value) is not int or value % coupling.units or not value:
                continue
            setting = (path, key, value // coupling.units)
            if _COUNT.search(key) and not _NO_COUNT.search(key):
                counts.append(setting)
            elif _GROUPS.search(key):
                groups.append(setting)
            elif value in sizes and not _HEAD_SIZE.search(key):
                (own if _MODEL_SIZE.search(key) else widths).append(setting)
    shared = (
        [
            ("", f"config.{key}", value // coupling.units)
            for key, value in vars(getattr(module, "config", object())).items()
            if type(value) is int and value and value % coupling.units == 0
            if _COUNT.search(key) and not _NO_COUNT.search(key)
        ]
        if hasattr(getattr(module, "config", None), "__dict__")
        else []
    )
    sets = [[], counts, counts + widths, counts + widths + own, groups, counts + groups, counts + groups + widths]
    seen: list[list[Setting]] = []
    for more in ([], shared):
        for one in sets:
            plan = one + more
            if plan not in seen:
                seen.append(plan)
                yield plan


def _zero(module: nn.Module, coupling: Coupling, gone: set[int]) -> None:
    def write(part: Any, key: str, axis: int, units: list[int]) -> None:
        tensor = module.get_submodule(part.name.strip("."))._parameters.get(key)
        if tensor is not None:
            places = [index for index, unit in enumerate(units) if unit in gone]
            tensor.data.index_fill_(axis, torch.tensor(places, dtype=torch.long, device=tensor.device), 0.0)

    for part in coupling.outputs:
        write(part, "weight", row_axis(part.module), part.units)
        write(part, "bias", 0, part.units)
    for part in coupling.inputs:
        write(part, "weight", 1 - row_axis(part.module), input_columns(part))


def _numbers(output: Any) -> Tensor:
    return next(one for one in tree_leaves(output) if isinstance(one, Tensor)).double()


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not bool(one.isfinite().all()):
        return False
    return float((one - other).abs().max()) <= _NEAR * float(one.abs().max().clamp(min=1e-30))
