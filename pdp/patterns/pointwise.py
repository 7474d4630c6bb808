"""Elementwise operations: ties the channels of operands, and determines by trial what zeros in the operands become."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.patterns import labels as lab
from pdp.patterns.walk import Walk, title

_NAMED = {"hardswish", "_prelu_kernel", "masked_fill", "rsub", "gelu", "floor_divide", "where", "log_sigmoid_forward"}
_OTHER = 3  # the state of an operand without channels at this position
_TRIED = (-1.7, -0.3, 0.4, 1.9, 0.9)
_TRIED_BOOLEANS = (True, False, True, False, True)


@lru_cache(maxsize=4096)
def is_pointwise(func: Any, base: str) -> bool:
    """Whether the operation is elementwise."""
    if torch.Tag.pointwise in func.tags or base in _NAMED:
        return True
    packet = getattr(torch.ops.aten, base, None)
    overload = getattr(packet, func._overloadname, None)
    return overload is not None and torch.Tag.pointwise in overload.tags


def pointwise(walk: Walk, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Labels the result; ties the operands' channels, or pins them if they are combined with anything else."""
    out = out[0] if isinstance(out, tuple) else out
    tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    dims = out.dim()
    held = [_aligned(walk.labels(one), dims) for one in tensors]
    varying = sorted({dim for one in held if one is not None for dim in lab.varying(one)})
    if varying:
        for place, one in enumerate(held):
            if one is not None and not lab.varying(one):
                # A single channel is combined with all channels of another tensor.
                walk.pin(one if lab.of_data(one) else None, f"its one channel acts on all of {walk.where}")
                held[place] = None
    if all(one is None for one in held):
        return
    shape = [out.shape[dim] if dim in varying else 1 for dim in range(dims)]
    spread = [_spread(one, tensor, varying, shape) for one, tensor in zip(held, tensors, strict=True)]
    values = np.stack([one.reshape(-1).numpy() for one in spread])
    some = values >= 0
    foreign = values == lab.NONE
    lost = some & foreign.any(0)
    if lost.any():
        reason = f"its channels meet other values ({title(func)} in {walk.where})"
        walk.atoms.pin(values[lost] // lab._WIDTH, reason)
    first = _leading(values, some)
    for row, present in zip(values, some, strict=True):
        both = present & (first >= 0)
        walk.atoms.tie(first[both] // lab._WIDTH, row[both] // lab._WIDTH)
    states = np.where(some, values & lab._STATES, _OTHER)
    result = np.zeros(len(first), dtype=np.int64)
    for combination in {tuple(one) for one in np.unique(states, axis=1).T.tolist()}:
        at = (states == np.array(combination)[:, None]).all(0)
        state, masked = _becomes(func, args, kwargs, combination)
        result[at] = state
        if masked:
            free = at & (states == lab.FREE)
            walk.mask(values[free] // lab._WIDTH)
    labels = lab.with_state(torch.from_numpy(first).reshape(shape), result)
    walk.put(out, lab.compact(labels))


def _aligned(labels: Tensor | None, dims: int) -> Tensor | None:
    return None if labels is None else labels.reshape((1,) * (dims - labels.dim()) + tuple(labels.shape))


def _spread(labels: Tensor | None, tensor: Tensor, varying: list[int], shape: list[int]) -> Tensor:
    """An operand's labels over the varying dimensions; -2 where it has one value for all channels."""
    if labels is not None:
        return labels.expand(shape)
    sizes = (1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape)
    common = all(sizes[dim] == 1 for dim in varying)
    return torch.full((1,) * len(shape), -2 if common else lab.NONE).expand(shape)


def _leading(values: np.ndarray, some: np.ndarray) -> np.ndarray:
    """The label of each element of the result: a layer's channel takes precedence over a parameter's element."""
    first = np.full(values.shape[1], lab.NONE, dtype=np.int64)
    for data in (True, False):
        for row, present in zip(values, some, strict=True):
            wanted = present & (lab.is_data(row) == data) & (first < 0)
            first[wanted] = row[wanted]
    return first


def _becomes(func: Any, args: Any, kwargs: Any, states: tuple[int, ...]) -> tuple[int, bool]:
    """The state of the result for these states of the operands, and whether FREE parameters must be masked for it."""
    if _is_zero(func, args, kwargs, [one == lab.ZERO for one in states]):
        return lab.ZERO, False
    if lab.FREE in states and _is_zero(func, args, kwargs, [one in (lab.ZERO, lab.FREE) for one in states]):
        if all(one in (lab.FREE, _OTHER) for one in states):
            return (lab.FREE if states.count(lab.FREE) == 1 else lab.KEPT), False
        return lab.ZERO, True
    return lab.KEPT, False


def _is_zero(func: Any, args: Any, kwargs: Any, zeros: list[bool]) -> bool:
    """Whether the result is zero if these operands are zero, whatever the others are; tried on sample values."""
    if not any(zeros):
        return False
    place = iter(zeros)

    def tried(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        zero = next(place)
        numbers = torch.tensor(_TRIED_BOOLEANS if value.dtype == torch.bool else _TRIED, dtype=value.dtype)
        return torch.zeros_like(numbers) if zero else numbers

    own = [tried(one) for one in args]
    named = {key: tried(value) for key, value in kwargs.items()}
    named.pop("device", None)
    result = func(*own, **named)
    result = result[0] if isinstance(result, tuple) else result
    return bool((result == 0).all())
