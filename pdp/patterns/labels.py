"""Which slice of which parameter each element of a tensor belongs to: an array of numbers that broadcasts against it.

A label is an atom's number (`pdp.patterns.atoms`) with what its element is where the atom's unit is pruned. Operations
that move elements are applied to the labels as they are to the tensor, so no two ways to write a reshape differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NONE = -1  # belongs to no atom
KEPT, ZERO, FREE = 0, 1, 2  # where the unit is pruned: not zero, zero, zero if the parameter is masked
_STATES = 3
_PARAMETER = 4
_WIDTH = 8


@dataclass
class Mark:
    """What is known of a tensor: its labels, or the parameter that it is, with the axis of each dimension."""

    labels: Tensor | None = None  # int64, as many dimensions as the tensor, of size 1 where it makes no difference
    source: tuple[int, tuple[int | None, ...]] | None = None


def encode(atoms: Tensor, state: int, parameter: bool = False) -> Tensor:
    """Labels of these atoms."""
    return atoms * _WIDTH + state + (_PARAMETER if parameter else 0)


def atoms_of(labels: Tensor) -> np.ndarray:
    """The atoms of labels, flat; NONE where there is none."""
    values = labels.reshape(-1).numpy()
    return np.where(values >= 0, values // _WIDTH, NONE)


def states_of(labels: Tensor) -> np.ndarray:
    """The states, flat; KEPT where there is no atom."""
    values = labels.reshape(-1).numpy()
    return np.where(values >= 0, values & _STATES, KEPT)


def with_state(labels: Tensor, state: np.ndarray | int) -> Tensor:
    """These labels with other states, given flat."""
    values = labels.reshape(-1).numpy()
    changed = np.where(values >= 0, (values & ~_STATES) + state, NONE)
    return torch.from_numpy(changed).reshape(labels.shape)


def of_data(labels: Tensor) -> bool:
    """Whether any element belongs to channels that a layer makes, rather than to a parameter."""
    return bool(((labels >= 0) & (labels & _PARAMETER == 0)).any())


def is_data(values: np.ndarray) -> np.ndarray:
    """Which labels are of channels that a layer makes."""
    return (values >= 0) & (values & _PARAMETER == 0)


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which the labels differ."""
    return [dim for dim, size in enumerate(labels.shape) if size > 1]


def compact(labels: Tensor) -> Tensor | None:
    """The same labels with size 1 wherever they do not differ; None where there is no atom at all."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    for dim in range(labels.dim()):
        first = labels.narrow(dim, 0, 1)
        if labels.shape[dim] > 1 and bool((labels == first).all()):
            labels = first
    return labels if bool((labels >= 0).any()) else None


def along(labels: Tensor, dim: int, size: int) -> Tensor | None:
    """The labels as a vector along `dim`; None where they differ along another dimension."""
    dim %= labels.dim()
    if any(one != dim for one in varying(labels)):
        return None
    return labels.reshape(-1).expand(size) if labels.numel() == 1 else labels.reshape(-1)


def upright(vector: Tensor, dim: int, dims: int) -> Tensor:
    """A vector of labels along dimension `dim` of `dims`."""
    shape = [1] * dims
    shape[dim] = len(vector)
    return vector.reshape(shape)
