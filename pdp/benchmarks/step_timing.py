"""Measures what a method adds to a training step: contenders timed alternately in one process, at the target share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch

from pdp.benchmarks.contender import Contender


class Timed(Protocol):
    """Anything whose steps can be timed."""

    def seconds(self, steps: int) -> float:
        """Wall time of `steps` steps in seconds."""


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper quartile."""
    return [float(one) for one in np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.75])]


@dataclass(frozen=True)
class Pairs:
    """Seconds of two contenders, a row per round; in every other round the second one is timed first."""

    rows: list[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        """Time of the second contender divided by that of the first, for each round."""
        return [second / first for first, second in self.rows]

    @property
    def repeats(self) -> list[float]:
        """Ratios of successive measurements of the same contender, the later to the earlier: the noise of the machine.

        The order alternates, so the contender that is last in one round is first in the next one.
        """
        rows = self.rows
        return [rows[number + 1][(number + 1) % 2] / rows[number][(number + 1) % 2] for number in range(len(rows) - 1)]


def in_turn(
    first: Timed,
    second: Timed,
    rounds: int,
    steps: int,
    warmup: int,
    tell: Callable[[], None] = lambda: None,
) -> Pairs:
    """Times two contenders alternately after `warmup` steps of each.

    Every measurement covers `steps` steps, and `tell` is called after each.
    """
    for contender in (first, second):
        contender.seconds(warmup)
        tell()
    rows = []
    for number in range(rounds):
        pair = (first, second) if number % 2 == 0 else (second, first)
        taken = {}
        for contender in pair:
            taken[id(contender)] = contender.seconds(steps)
            tell()
        rows.append((taken[id(first)], taken[id(second)]))
    return Pairs(rows)


def ratios(dense: Sequence[str], methods: dict[str, Sequence[str]], tell: Any) -> list[dict[str, Any]]:
    """One row per method: method, step_ratio, least, largest; each against a dense contender, with one thread."""
    torch.set_num_threads(1)
    first = Contender(dense)
    rows = []
    for method, overrides in methods.items():
        taken = in_turn(first, Contender(overrides), rounds=9, steps=8, warmup=3).ratios
        middle, least, largest = median(taken), min(taken), max(taken)
        rows.append({"method": method, "step_ratio": middle, "least": least, "largest": largest})
        tell(f"{method}: a step takes {middle:.2f} times the dense one ({least:.2f} to {largest:.2f})")
    return rows
