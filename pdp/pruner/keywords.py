"""The keywords of `Pruner`: each of the right kind, and none that would change nothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pdp.errors import Refusal
from pdp.keywords import check_kind, option_names
from pdp.methods.effects import Setting, check_allocation, idle, idle_allocation, idle_temperature, mode_of
from pdp.methods.method import Method
from pdp.methods.options import PdpOptions
from pdp.patterns.pattern import Pattern
from pdp.pruner.budget import allocation_of
from pdp.schedule.shapes import Schedule
from pdp.spoken import in_python, speaks_config

_SHARED = ("allocation", "method.kappa", "method.temperature")  # often the same for several methods, patterns or modes


@dataclass(frozen=True)
class Shares:
    """What a person says of how the target is divided among the layers."""

    allocation: str | None
    path: str | Path | None
    least_density: float
    ends: str

    def typed(self) -> set[str]:
        """The command line's keys of what is said."""
        said = {
            "allocation": self.allocation is not None,
            "allocation.path": self.path is not None,
            "allocation.least_density": self.least_density > 0,
            "allocation.ends": self.ends != "pruned",
        }
        return {key for key, holds in said.items() if holds}


def check_values(
    sparsity: float | None,
    epochs: int,
    steps_per_epoch: int | None,
    least_density: float,
    upper_bound: float,
    seed: int,
    allocation: str | None,
    ends: str,
) -> None:
    """Raises `Refusal` for a number or a text of another kind than its annotation here says, or of no sense."""
    given = locals()
    for key, hint in get_type_hints(check_values).items():
        if key != "return":
            check_kind(key, given[key], hint)
    if epochs < 0:
        raise Refusal(f"epochs={epochs} is out of range: give epochs at least 0")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise Refusal(f"steps_per_epoch={steps_per_epoch} is out of range: give steps_per_epoch at least 1, or None")
    if not 0 < upper_bound < math.inf:
        raise Refusal(f"upper_bound={upper_bound} is out of range: give the metric's best possible value")


def check_texts(**lists: Sequence[str]) -> None:
    """Raises `Refusal` for a list of texts that is none, such as a single text, which Python reads letter by letter."""
    for key, value in lists.items():
        if isinstance(value, str) or not all(isinstance(one, str) for one in value):
            instead = f'["{value}"]' if isinstance(value, str) else "[<texts>]"
            raise Refusal(f"{key}={value!r} is no list of names or patterns: give {key}={instead}")


def check_effects(
    method: Method,
    pattern: Pattern,
    schedule: Schedule | str | dict[str, Any] | None,
    shares: Shares,
    options: Mapping[str, Any],
    pattern_options: Mapping[str, Any],
) -> None:
    """Raises `Refusal` for what was asked of a pruner and has no effect in it, where the command line has not looked.

    Schedule, allocation, temperature and kappa are often the same for several methods or patterns: where nothing comes
    of one, the user is warned. `options` and `pattern_options` are those that were given by name.
    """
    if speaks_config() or not method.prunes:
        return
    given = {f"method.{key}": value for key, value in options.items()}
    given |= {f"prune.{key}": value for key, value in pattern_options.items()}
    typed = {key for key, value in given.items() if value is not None} | _changed(method.options) | shares.typed()
    name = shares.allocation or ("file" if method.locked else method.allocation)
    if said := idle_allocation(method.options.name, pattern.name, name, typed):
        _warn(said)
    elif pattern.name != "nm":
        path = None if shares.path is None or method.locked else str(shares.path)
        floors = {key: f"allocation.{key}" in typed for key in ("least_density", "ends")}
        check_allocation(method.options.name, pattern.name, name, path, typed, floors)
    chosen = method.options
    if isinstance(chosen, PdpOptions) and "method.temperature" in typed and mode_of(chosen, pattern.name) == "relative":
        _warn(idle_temperature(chosen.temperature_mode, pattern.name))
    own = {"name": method.schedule, "warmup": None, "ramp": None, "rate": None, "unit": "epoch"}
    asked = {"name": schedule} if isinstance(schedule, str) else schedule if isinstance(schedule, dict) else {}
    typed |= {f"schedule.{key}" for key in asked}
    setting = Setting(
        method.options,
        pattern.name,
        pattern.options,
        allocation_of(pattern, method, shares.allocation),
        own | asked,
        "name" not in asked,
    )
    values = given | {f"schedule.{key}": value for key, value in asked.items()} | {"allocation": shares.allocation}
    for key, why in idle(setting):
        if key in typed:
            value = values[key] if key in values else getattr(method.options, key.partition(".")[2])
            said = f"{key}={value} has no effect with {why}"
            if key not in _SHARED and not key.startswith("schedule."):
                raise Refusal(said)
            _warn(said)


def _warn(said: str) -> None:
    warnings.warn(in_python(said), stacklevel=4)  # where the pruner is made


def _changed(options: Any) -> set[str]:
    """The keys of a method's options that are not its defaults."""
    plain = type(options)()
    return {f"method.{name}" for name in option_names(type(options)) if getattr(options, name) != getattr(plain, name)}
