"""prune.round_to: budgets that keep multiples of a number of channels, which processors multiply faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

from pdp.layers import Layer
from pdp.patterns.coupling import Coupling

_TRIES = 5000  # most budgets that are tried


def unit_step(coupling: Coupling, round_to: int) -> int:
    """The number of units whose channels are a multiple of `round_to`; a unit has several channels if it is a head."""
    part = coupling.outputs[0]
    channels = sum(unit >= 0 for unit in part.units) // coupling.units
    return round_to // math.gcd(round_to, max(1, channels))


def round_budget(
    layers: Sequence[Layer],
    budget: Sequence[int],
    steps: Sequence[int],
    gone: Callable[[Sequence[int]], float],
    wanted: float,
) -> list[int]:
    """The pruned units of each layer, changed so that what it keeps is a multiple of its step, or all of its units.

    Each layer goes to one of the two multiples around its budget, never below the units that it must keep. It begins
    with the nearer one. Then one or two layers at a time go to their other multiple, the nearest first, as long as this
    brings `gone` (the share that a budget prunes) closer to `wanted`.
    """
    choices = [_around(layer, count, step) for layer, count, step in zip(layers, budget, steps, strict=True)]
    found = [_nearer(ends, count) for ends, count in zip(choices, budget, strict=True)]
    free = [place for place, ends in enumerate(choices) if ends[0] != ends[1]]
    free.sort(key=lambda place: abs(_other(choices[place], found[place]) - budget[place]))
    best, tries = abs(gone(found) - wanted), _TRIES
    while tries > 0:
        for places in (*((place,) for place in free), *combinations(free, 2)):
            tried = [*found]
            for place in places:
                tried[place] = _other(choices[place], found[place])
            distance, tries = abs(gone(tried) - wanted), tries - 1
            if distance < best - 1e-12:
                found, best = tried, distance
                break
            if tries == 0:
                break
        else:
            break
    return found


def _around(layer: Layer, count: int, step: int) -> tuple[int, int]:
    """The two budgets around `count` that keep a multiple of `step`, or all units; fewer kept first."""
    kept = layer.units - count
    up = min(layer.units, -(-kept // step) * step)
    down = kept // step * step
    if down < max(1, layer.least) or kept == layer.units:
        down = up
    return layer.units - down, layer.units - up


def _nearer(ends: tuple[int, int], count: int) -> int:
    """The end nearer to `count`; of two as near the one that keeps more."""
    return min(ends, key=lambda end: (abs(end - count), end))


def _other(ends: tuple[int, int], end: int) -> int:
    return ends[1] if end == ends[0] else ends[0]
