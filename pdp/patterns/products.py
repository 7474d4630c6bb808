"""Convolutions and matrix products: the rows of a weight make channels, its columns read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.patterns import labels as lab
from pdp.patterns.walk import Walk

_HEADS = "its channels are parts of heads, in an attention of a kind that is not known"
_OWN = "its channels meet a parameter of the model's own ({})"


def _convolution(walk: Walk, args: Any, kwargs: Any, out: Tensor) -> None:
    values, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    transposed, groups = (args[6], args[8]) if len(args) > 8 else (False, args[6] if len(args) > 6 else 1)
    walk.macs += out.numel() * (weight[0].numel() if not transposed else weight.numel() // weight.shape[1])
    dims = weight.dim() - 2
    channel = values.dim() - dims - 1
    rows, columns = (1, 0) if transposed else (0, 1)
    _linear(walk, values, channel, weight, (rows, columns), bias, out, out.dim() - dims - 1, groups)


def _linear(
    walk: Walk,
    values: Tensor,
    channel: int,
    weight: Tensor,
    sides: tuple[int, int],
    bias: Any,
    out: Tensor,
    made: int,
    groups: int = 1,
) -> None:
    """A weight reads `values` along dimension `channel` and makes dimension `made` of `out`.

    `sides` are the weight's dimensions of outputs and inputs.
    """
    labels = walk.labels(values) if walk.mark(values) is not None else None
    mark = walk.mark(weight)
    source = mark.source if mark is not None else None
    axes = None if source is None else tuple(source[1][side] for side in sides)
    site = None
    if source is not None and axes is not None and None not in axes:
        site = walk.weight_site(source[0], axes[0], axes[1])  # type: ignore[arg-type]
    if site is None or source is None or axes is None:
        inside = "whose weight is computed from another" if source is None else "read as no layer's weight"
        walk.pin(labels, _OWN.format(f"{walk.where}, {inside}"))
        walk.pin_all(weight, f"its weight is computed from another tensor in {walk.where} before it is read")
        walk.pin_all(bias, f"it is added in {walk.where}")
        return
    name, identity = site[0], source[0]
    others = [one[0] or "the model" for one in walk.owners[identity] if one is not site]
    read = None if labels is None else lab.along(labels, channel, values.shape[channel])
    if labels is not None and read is None:
        walk.pin(labels, f"its channels lie along a dimension that {name} does not read ({walk.where})")
    inputs = weight.shape[sides[1]]
    depthwise = groups > 1 and inputs == 1 and sides == (0, 1)
    first = walk.atoms.block(("rows", identity), weight.shape[sides[0]])
    rows = np.arange(first, first + weight.shape[sides[0]])
    column = walk.atoms.block(("columns", identity), inputs)
    columns = np.arange(column, column + inputs)
    if others:
        for atoms in (rows, columns):
            walk.atoms.pin(atoms, f"its weight is that of {others[0]} as well")
    if groups > 1 and sides != (0, 1):
        walk.atoms.pin(rows, f"{name} is a transposed convolution in groups")
        walk.pin(labels, f"{name}, which reads its channels, is a transposed convolution in groups")
        read = None
    atoms = np.full(values.shape[channel], lab.NONE) if read is None else lab.atoms_of(read)
    if depthwise:
        _depthwise(walk, name, atoms, rows.reshape(groups, -1))
    elif sides == (0, 1) or groups == 1:
        _read(walk, name, atoms, read, columns, groups)
        if groups > 1:
            _tie_all(walk, rows.reshape(groups, -1))
    if name in walk.apart:
        return
    state = _bias(walk, name, site[1], bias, rows)
    if out.shape[made] == len(rows):
        walk.put(out, lab.upright(lab.encode(torch.from_numpy(rows), state), made, out.dim()))


def _tie_all(walk: Walk, rows: np.ndarray) -> None:
    for one in rows[1:]:
        walk.atoms.tie(rows[0], one)


def _depthwise(walk: Walk, name: str, atoms: np.ndarray, rows: np.ndarray) -> None:
    """Depthwise: each channel is read only by the rows of its own group."""
    for column in rows.T:
        both = atoms >= 0
        walk.atoms.tie(atoms[both], column[both])
        walk.atoms.pin(column[~both], f"{name} takes a channel each from values that stay")


def _read(walk: Walk, name: str, atoms: np.ndarray, read: Tensor | None, columns: np.ndarray, groups: int) -> None:
    """Channel j of each group is read by column j of the weight."""
    groups = max(groups, 1)
    columns = np.tile(columns, groups)
    some = atoms >= 0
    walk.atoms.tie(atoms[some], columns[some])
    walk.atoms.pin(columns[~some], f"{name} reads other values by the same weights")
    if read is not None:
        kept = some & (lab.states_of(read) != lab.ZERO)
        walk.read_kept.append(columns[kept])


def _bias(walk: Walk, name: str, module: Any, bias: Any, rows: np.ndarray) -> int:
    """The state of what masked rows produce with this bias."""
    if bias is None or bias is module._parameters.get("bias") and len(walk.owners[id(bias)]) == 1:
        return lab.ZERO
    labels = walk.labels(bias)
    if labels is None:
        walk.atoms.pin(rows, f"{name} adds a bias that is not its own")
        return lab.KEPT
    other = lab.atoms_of(labels.expand(bias.shape))
    if len(other) != len(rows) or (other < 0).any():
        walk.atoms.pin(rows, f"{name} adds a bias that is not its own")
        return lab.KEPT
    walk.atoms.tie(rows, other)
    if (lab.states_of(labels) == lab.FREE).all():
        walk.mask(other)
        return lab.ZERO
    return lab.KEPT


def _mm(walk: Walk, args: Any, kwargs: Any, out: Tensor) -> None:
    _product(walk, args[0], args[1], None, out)


def _addmm(walk: Walk, args: Any, kwargs: Any, out: Tensor) -> None:
    scaled = any(kwargs.get(key, 1) != 1 for key in ("alpha", "beta"))
    _product(walk, args[1], args[2], args[0], out, scaled)


def _linear_operation(walk: Walk, args: Any, kwargs: Any, out: Tensor) -> None:
    walk.macs += out.numel() * args[1].shape[1]
    bias = args[2] if len(args) > 2 else None
    _linear(walk, args[0], args[0].dim() - 1, args[1], (0, 1), bias, out, out.dim() - 1)


def _product(walk: Walk, left: Tensor, right: Tensor, added: Any, out: Tensor, scaled: bool = False) -> None:
    """The rule for left @ right (+ added), with two or three dimensions."""
    walk.macs += out.numel() * left.shape[-1]
    dims = out.dim()
    if _is_parameter(walk, right) and not scaled and right.dim() == dims:
        _linear(walk, left, dims - 1, right, (dims - 1, dims - 2), added, out, dims - 1)
        return
    if _is_parameter(walk, left) and not scaled and left.dim() == dims and added is None:
        _linear(walk, right, dims - 2, left, (dims - 2, dims - 1), None, out, dims - 2)
        return
    held = [walk.labels(one) if walk.mark(one) is not None else None for one in (left, right)]
    walk.pin_all(added, f"its channels meet other values in {walk.where}")
    if held[0] is not None and held[1] is not None:
        walk.pin_all((left, right), _HEADS)
        return
    for labels, contracted in zip(held, (dims - 1, dims - 2), strict=True):
        if labels is None:
            continue
        if contracted in lab.varying(labels) or added is not None or not lab.of_data(labels):
            walk.pin(labels, f"its channels are summed with other values by a product in {walk.where}")
        else:
            walk.put(out, labels)


def _is_parameter(walk: Walk, tensor: Tensor) -> bool:
    mark = walk.mark(tensor)
    return mark is not None and mark.source is not None


PRODUCTS: dict[str, Callable[[Walk, Any, Any, Tensor], None]] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "convolution_overrideable": _convolution,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "linear": _linear_operation,
}
