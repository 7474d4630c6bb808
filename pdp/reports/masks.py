"""Reads the histograms that a run keeps, distributions.npz: densities of weights and shares of mask values."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

MOMENTS = {"start": "start of pruning", "middle": "mid-ramp", "end": "end"}
_KEYS = ("weights", "masks", "edges")


def read_distributions(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a run's distributions.npz; None if there is no readable one."""
    try:
        with np.load(path / "distributions.npz", allow_pickle=False) as stored:
            found = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return found if {"layers", *(f"{one}/{key}" for one in MOMENTS for key in _KEYS)} <= set(found) else None


def weight_values(found: dict[str, np.ndarray], number: int = 4) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Bin edges and density by layer and moment, for `number` layers spread from the first to the last."""
    names = [str(one) for one in found["layers"]]
    chosen = sorted({round(one) for one in np.linspace(0, len(names) - 1, number)})
    values: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for layer in chosen:
        for moment in MOMENTS:
            counts, edge = found[f"{moment}/weights"][layer], float(found[f"{moment}/edges"][layer])
            edges = np.linspace(-edge, edge, len(counts) + 1)
            density = counts / max(counts.sum(), 1) / (edges[1] - edges[0])
            values.setdefault(names[layer], {})[moment] = edges, density
    return values


def mask_values(runs: list[dict[str, np.ndarray]]) -> pd.DataFrame:
    """Shares of the prunable weights of all runs in equal bins of the mask's value in [0, 1]; one column per moment."""
    columns = {}
    for moment in MOMENTS:
        counts = sum(one[f"{moment}/masks"].astype(np.int64).sum(axis=0) for one in runs)
        columns[moment] = counts / max(int(np.sum(counts)), 1)
    return pd.DataFrame(columns)


def soft_share(shares: pd.Series) -> float:
    """The share of mask values that are not binary, that is in neither the first nor the last of 20 bins."""
    edge = round(len(shares) * 0.05)
    return float(shares.iloc[edge : len(shares) - edge].sum())
