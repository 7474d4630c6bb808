"""Labels say which slice of which parameter each element of a tensor belongs to: integers that broadcast against it.

A label combines the number of an atom (`pdp.patterns.atoms`) with the state of the element when the atom's unit is
pruned. Operations that move elements are applied to the labels exactly as to the tensor, so different ways to write a
reshape give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NONE = -1  # the element belongs to no atom
KEPT, ZERO, FREE = 0, 1, 2  # an element's value if its unit is pruned: nonzero; zero; zero if the parameter is masked
_STATES = 3
_PARAMETER = 4
_WIDTH = 8


@dataclass
class Mark:
    """What is known about a tensor: its labels, or which parameter it is and the axis of each dimension."""

    labels: Tensor | None = None  # int64, same number of dimensions as the tensor, size 1 where all labels are equal
    source: tuple[int, tuple[int | None, ...]] | None = None


def encode(atoms: Tensor, state: int, parameter: bool = False) -> Tensor:
    """The labels of these atoms in this state."""
    return atoms * _WIDTH + state + (_PARAMETER if parameter else 0)


def atoms_of(labels: Tensor) -> np.ndarray:
    """The atoms of the labels, flattened; NONE for elements without one."""
    values = labels.reshape(-1).numpy()
    return np.where(values >= 0, values // _WIDTH, NONE)


def states_of(labels: Tensor) -> np.ndarray:
    """The states of the labels, flattened; KEPT for elements without an atom."""
    values = labels.reshape(-1).numpy()
    return np.where(values >= 0, values & _STATES, KEPT)


def with_state(labels: Tensor, state: np.ndarray | int) -> Tensor:
    """The same labels with other states, given flattened."""
    values = labels.reshape(-1).numpy()
    changed = np.where(values >= 0, (values & ~_STATES) + state, NONE)
    return torch.from_numpy(changed).reshape(labels.shape)


def of_data(labels: Tensor) -> bool:
    """Whether any element belongs to channels that a layer makes, and not to a parameter."""
    return bool(((labels >= 0) & (labels & _PARAMETER == 0)).any())


def is_data(values: np.ndarray) -> np.ndarray:
    """Which labels belong to channels that a layer makes."""
    return (values >= 0) & (values & _PARAMETER == 0)


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which the labels differ."""
    return [dim for dim, size in enumerate(labels.shape) if size > 1]


def compact(labels: Tensor) -> Tensor | None:
    """The same labels with size 1 in dimensions along which they are equal; None if there is no atom at all."""
    for dim in range(labels.dim()):
        if labels.shape[dim] > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    for dim in range(labels.dim()):
        first = labels.narrow(dim, 0, 1)
        if labels.shape[dim] > 1 and bool((labels == first).all()):
            labels = first
    return labels if bool((labels >= 0).any()) else None


def along(labels: Tensor, dim: int, size: int) -> Tensor | None:
    """The labels as a vector along `dim`; None if they differ along another dimension."""
    dim %= labels.dim()
    if any(one != dim for one in varying(labels)):
        return None
    return labels.reshape(-1).expand(size) if labels.numel() == 1 else labels.reshape(-1)


def upright(vector: Tensor, dim: int, dims: int) -> Tensor:
    """A vector of labels reshaped to lie along dimension `dim` of `dims`."""
    shape = [1] * dims
    shape[dim] = len(vector)
    return vector.reshape(shape)
