"""The metrics by which GLUE measures its tasks, over all samples at once."""

from __future__ import annotations

import numpy as np

# The first is the task's own; QQP and MRPC have F1 beside it, STS-B Spearman's correlation.
METRICS: dict[str | None, tuple[str, ...]] = {
    "qqp": ("accuracy", "f1"),
    "mrpc": ("accuracy", "f1"),
    "cola": ("matthews_correlation",),
    "stsb": ("pearson", "spearman"),
}


def names_of(task: str | None) -> tuple[str, ...]:
    """The metrics of a task; accuracy where nothing else is said."""
    return METRICS.get(task, ("accuracy",))


def measure(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """One metric in float64: of classes, F1 that of class 1; of scores, a correlation, 0 where one side is constant."""
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
