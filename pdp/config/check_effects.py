"""Checks that what was typed has an effect: an option without one would give another run id with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from pdp.config.groups import CONF
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.methods.options import GmpOptions, MovementOptions, PdpOptions
from pdp.schedule.shapes import WHOLE_RUN
from pdp.schedule.time import Time

RELATIVE = ("channel", "block")  # patterns whose temperature is relative unless the user chooses one
# Methods that do not look at the pattern's saliency, by what they go by instead.
OWN_SALIENCY = {
    "slimming": "goes by BatchNorm's scales",
    "chex": "goes by BatchNorm's scales and leverage scores",
    "movement": "goes by trained scores",
    "optg": "goes by trained scores",
    "held": "keeps the zeros that there are",
}
_UNSCHEDULED = ("chex", "rigl", "wanda", "sparsegpt", "held")  # that another schedule would change nothing or little of
Idle = Iterator[tuple[str, str]]


def check_effects(config: Config, typed: Set[str]) -> None:
    """Raises `Refusal` for the first of the `typed` keys that has no effect; what files set is left alone."""
    for key, why in idle(config):
        if key in typed:
            raise Refusal(f"{key}={_spelled(config, key)} has no effect with {why}")


def idle(config: Config) -> Idle:
    """The keys whose values have no effect in this run, each with what takes the effect away and what to change.

    A value that means nothing where nothing else is possible, such as a warm-up of 0, is not among them.
    """
    yield from _of_recipe(config)
    if config.method.name == "dense":
        return
    yield from _of_schedule(config)
    if isinstance(config.method, PdpOptions):
        yield from _of_pdp(config, config.method)
    yield from _of_budget(config)
    yield from _of_pattern(config)
    if isinstance(config.method, MovementOptions):
        yield from _of_movement(config, config.method)


def temperature_mode(config: Config) -> str:
    """The temperature of PDP's mask in this run: absolute, relative or learned."""
    assert isinstance(config.method, PdpOptions)
    return config.method.mode("relative" if config.prune.pattern in RELATIVE else "absolute")


def _of_recipe(config: Config) -> Idle:
    recipe = config.recipe
    if recipe.lr_min and recipe.lr_schedule == "constant":
        yield "recipe.lr_min", "recipe.lr_schedule=constant: drop it, or give recipe.lr_schedule=cosine"
    if recipe.optimizer == "adamw":
        for key in ("momentum", "nesterov"):
            if getattr(recipe, key):
                yield f"recipe.{key}", "recipe.optimizer=adamw: drop it, or give recipe.optimizer=sgd"


def _of_schedule(config: Config) -> Idle:
    schedule, method = config.schedule, config.method.name
    own = "" if f"override /schedule: {schedule.name}\n" not in _method_file(method) else f", that of method={method}"
    drop = "drop it" if method in _UNSCHEDULED else "drop it, or give schedule="
    if schedule.name in WHOLE_RUN:
        does = "prunes from the first step on" if schedule.name == "constant" else "takes the whole run"
        for key in ("warmup", "ramp"):
            if not _is_nothing(getattr(schedule, key)):
                other = "oneshot" if method == "asp" else "linear"
                yield f"schedule.{key}", f"schedule={schedule.name}{own}, which {does}: {_ending(drop, other)}"
        if schedule.rate is not None:
            yield "schedule.rate", f"schedule={schedule.name}{own}, which {does}: {_ending(drop, 'linear')}"
    if schedule.name == "constant" and schedule.unit != "epoch" and not _deals_out_anew(config):
        yield "schedule.unit", f"schedule=constant{own}, whose share never changes: {_ending(drop, 'linear')}"
    if schedule.name == "oneshot":
        for key in ("ramp", "rate"):
            if not _is_nothing(getattr(schedule, key)):
                yield f"schedule.{key}", f"schedule=oneshot{own}, which cuts at once: {_ending(drop, 'linear')}"


def _ending(drop: str, schedule: str) -> str:
    return f"{drop}{schedule}" if drop.endswith("=") else drop


def _is_nothing(time: Any) -> bool:
    return time is None or (time != "auto" and not isinstance(time, float) and Time.parse(time).value == 0)


def _deals_out_anew(config: Config) -> bool:
    """Whether the method divides the target among the layers at each of the schedule's moments, so that these count."""
    return config.method.name == "movement" and config.allocation.name == "global"


def _of_pdp(config: Config, method: PdpOptions) -> Idle:
    mode = temperature_mode(config)
    if method.kappa is not None and mode == "absolute":
        if method.temperature_mode == "absolute":
            why = "method.temperature_mode=absolute: give method.temperature, or method.temperature_mode=relative"
        elif method.chosen is not None:
            why = f"method.{method.chosen}, which is absolute: drop it, or give "
            why += "method.temperature_mode=relative" if method.anneal == "none" else "method.kappa_end"
            why += f" in place of method.{method.chosen.partition('=')[0]}"
        else:
            why = (
                f"prune={config.prune.pattern}, whose temperature is absolute: add method.temperature_mode=relative, "
                "or give method.temperature"
            )
        yield "method.kappa", why
    if mode == "learned" and method.kappa is not None:
        yield "method.temperature", "method.kappa, from which log tau starts: drop one of them"
    if method.anneal == "none":
        other = "method.anneal=geometric" if method.name == "pdp_annealed" else "method=pdp_annealed"
        yield "method.anneal_share", f"method.anneal=none: drop it, or give {other}"
        if method.anneal_from != "target":
            yield "method.anneal_from", f"method.anneal=none: drop it, or give {other}"


def _of_budget(config: Config) -> Idle:
    method, allocation = config.method, config.allocation.name
    if not isinstance(method, PdpOptions | GmpOptions):
        return
    plain = type(method)().budget
    if method.budget != plain and config.prune.pattern == "nm":
        yield "method.budget", "prune=nm, which prunes every layer alike: drop it, or give prune=random"
    elif method.budget != plain and allocation != "global":
        yield "method.budget", f"allocation={allocation}: drop it, or give allocation=global"


def _of_pattern(config: Config) -> Idle:
    prune: Any = config.prune
    if prune.pattern not in RELATIVE:
        return
    instead = OWN_SALIENCY.get(config.method.name)
    words = f"method={config.method.name}, which {instead}: drop it, or give method=oneshot"
    if instead and prune.saliency != "rms":
        yield "prune.saliency", words
    if prune.relative_budget:
        return
    if instead:
        yield "prune.relative_budget", words
    elif (name := config.allocation.name) != "global":
        what = "channels" if prune.pattern == "channel" else "blocks"
        yield (
            "prune.relative_budget",
            f"allocation={name}, which compares no {what} of different layers: drop it, or give allocation=global",
        )


def _of_movement(config: Config, method: MovementOptions) -> Idle:
    if method.variant == "hard":
        yield "method.threshold", "method.variant=hard, which prunes by rank: drop it, or add method.variant=soft"
        if method.penalty:
            yield "method.penalty", "method.variant=hard, which has no penalty: drop it, or add method.variant=soft"
    elif config.allocation.name != "uniform":
        why = "method.variant=soft, which finds each layer's share itself: drop it, or give method.variant=hard"
        yield "allocation", why


def _method_file(name: str) -> str:
    path = CONF / "method" / f"{name}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _spelled(config: Config, key: str) -> str:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    value = getattr(value, "name", value)  # a group is spelled by its choice
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
