"""Checks that what was typed has an effect: an option without one would give another run id with the same numbers."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from pdp.config.groups import CONF
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.methods import effects
from pdp.methods.effects import Idle, Setting, mode_of
from pdp.methods.options import PdpOptions


def check_effects(config: Config, typed: Set[str]) -> None:
    """Raises `Refusal` for the first of the `typed` keys that has no effect; what files set is left alone."""
    for key, why in idle(config):
        if key in typed:
            raise Refusal(f"{key}={_spelled(config, key)} has no effect with {why}")


def idle(config: Config) -> Idle:
    """The keys whose values have no effect in this run, each with what takes the effect away and what to change."""
    yield from _of_recipe(config)
    if config.method.name == "dense":
        return
    name, schedule = config.method.name, config.schedule
    yield from effects.idle(
        Setting(
            config.method,
            config.prune.pattern,
            config.prune,
            config.allocation.name,
            vars(schedule),
            f"override /schedule: {schedule.name}\n" in _method_file(name),
        )
    )


def temperature_mode(config: Config) -> str:
    """The temperature of PDP's mask in this run: absolute, relative or learned."""
    assert isinstance(config.method, PdpOptions)
    return mode_of(config.method, config.prune.pattern)


def _of_recipe(config: Config) -> Idle:
    recipe = config.recipe
    if recipe.lr_min and recipe.lr_schedule == "constant":
        yield "recipe.lr_min", "recipe.lr_schedule=constant: drop it, or give recipe.lr_schedule=cosine"
    if recipe.optimizer == "adamw":
        for key in ("momentum", "nesterov"):
            if getattr(recipe, key):
                yield f"recipe.{key}", "recipe.optimizer=adamw: drop it, or give recipe.optimizer=sgd"


def _method_file(name: str) -> str:
    path = CONF / "method" / f"{name}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _spelled(config: Config, key: str) -> str:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    value = getattr(value, "name", value)  # a group is spelled by its choice
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
