"""The formulas of the cut and the soft mask, in float64."""

import math

import numpy as np


def reference_cut(values: np.ndarray, pruned: int) -> float:
    ordered = np.sort(values.astype(np.float64).reshape(-1))
    if pruned == 0:
        return -math.inf
    if pruned == ordered.size:
        return math.inf
    return (ordered[pruned - 1] + ordered[pruned]) / 2


def reference(weight: np.ndarray, cut: float, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """m and d(m w)/dw in float64."""
    w = weight.astype(np.float64)
    z = (w**2 - cut**2) / temperature
    mask = np.where(z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z))))
    return mask, mask + 2 * w**2 / temperature * mask * (1 - mask)
