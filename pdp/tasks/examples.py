"""Texts with labels, whatever file they come from, and a count of the rows that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pdp.errors import Refusal


@dataclass
class Examples:
    """One part of a data set: texts, second texts for tasks on pairs, and labels (int64 classes or float64 scores)."""

    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    reasons: Counter[str] = field(default_factory=Counter)  # reason -> number of rows left out for it

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def left_out(self) -> int:
        """The number of rows that were left out."""
        return self.reasons.total()

    def chosen(self, positions: np.ndarray) -> Examples:
        """The examples at these positions."""
        second = None if self.second is None else [self.second[k] for k in positions]
        return Examples([self.first[k] for k in positions], second, self.labels[positions])

    @property
    def classes(self) -> np.ndarray:
        """The labels by which a split is stratified; all zeros for scores, which are not stratified."""
        return self.labels if self.labels.dtype.kind == "i" else np.zeros(len(self), dtype=np.int64)


def make_examples(
    texts: Sequence[Sequence[str | None]],
    labels: Sequence[float | None],
    kind: str,
    left_out: Counter[str],
    place: str,
    key: str,
) -> Examples:
    """The rows that have all their texts and a label; `kind` is "label" or "score".

    Raises `Refusal` if no row is left.
    """
    reasons = Counter(left_out)
    kept = []
    for position, label in enumerate(labels):
        if any(column[position] is None for column in texts):
            reasons["no text"] += 1
        elif label is None:
            reasons[f"no {kind}"] += 1
        else:
            kept.append(position)
    columns = [[str(column[position]) for position in kept] for column in texts]
    if not kept:
        why = f" ({say_left_out(reasons)})" if reasons else ""
        raise Refusal(f"{place} has no row with a text and a {kind}{why}: set {key}")
    return Examples(
        columns[0],
        columns[1] if len(columns) > 1 else None,
        np.asarray([labels[position] for position in kept], dtype=np.int64 if kind == "label" else np.float64),
        reasons,
    )


def say_left_out(reasons: Counter[str]) -> str:
    """For example '3 rows left out: 2 no label, 1 too many fields'; empty if no row was left out."""
    if not reasons:
        return ""
    words = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    total = reasons.total()
    return f"{total:,} row{'s' if total > 1 else ''} left out: {words}"
