"""GLUE's metrics, computed over all samples at once."""

from __future__ import annotations

import numpy as np

# The first one is the task's main metric; QQP and MRPC also have F1, STS-B Spearman's correlation.
METRICS: dict[str | None, tuple[str, ...]] = {
    "qqp": ("accuracy", "f1"),
    "mrpc": ("accuracy", "f1"),
    "cola": ("matthews_correlation",),
    "stsb": ("pearson", "spearman"),
}


def names_of(task: str | None) -> tuple[str, ...]:
    """The names of a task's metrics; accuracy by default."""
    return METRICS.get(task, ("accuracy",))


def measure(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """One metric in float64. F1 is that of class 1; a correlation of scores is 0 if one side is constant."""
    from scipy import stats
    from sklearn import metrics

    if name == "accuracy":
        return float(np.mean(labels == predictions, dtype=np.float64))
    if name == "f1":
        return float(metrics.f1_score(labels, predictions, zero_division=0.0))
    if name == "matthews_correlation":
        return float(metrics.matthews_corrcoef(labels, predictions))
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    correlate = stats.pearsonr if name == "pearson" else stats.spearmanr
    return float(correlate(labels.astype(np.float64), predictions.astype(np.float64))[0])
