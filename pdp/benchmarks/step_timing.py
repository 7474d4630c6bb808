"""What a method adds to a training step: contenders timed in turn, in one process, at the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch

from pdp.benchmarks.contender import Contender


class Timed(Protocol):
    """What can be timed."""

    def seconds(self, steps: int) -> float:
        """Wall time of so many steps."""


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper quartile."""
    return [float(one) for one in np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.75])]


@dataclass(frozen=True)
class Pairs:
    """Seconds of two contenders in turn, a row per round; the second goes first in every other one."""

    rows: list[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        """Second over first, round by round."""
        return [second / first for first, second in self.rows]

    @property
    def repeats(self) -> list[float]:
        """Neighbouring measurements of the same contender, the later over the earlier: what the machine adds by itself.

        The order turns round, so whoever is last in a round is first in the next one.
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
    """Both warmed up, then timed in turn; every measurement is of `steps` steps, and `tell` is called after each."""
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
    """A row per method: method, step_ratio, least, largest; all against one dense contender, one thread."""
    torch.set_num_threads(1)
    first = Contender(dense)
    rows = []
    for method, overrides in methods.items():
        taken = in_turn(first, Contender(overrides), rounds=9, steps=8, warmup=3).ratios
        middle, least, largest = median(taken), min(taken), max(taken)
        rows.append({"method": method, "step_ratio": middle, "least": least, "largest": largest})
        tell(f"{method}: a step takes {middle:.2f} times the dense one ({least:.2f} to {largest:.2f})")
    return rows
