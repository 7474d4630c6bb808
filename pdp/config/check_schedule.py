"""Checks that the times of a recipe and a schedule fit into the run, or suggests times that do; needs no data."""

from __future__ import annotations

import copy
import math
import shlex
from collections.abc import Iterator, Sequence, Set
from typing import Any

import yaml

from pdp.config.groups import CONF, choices
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.schedule.shapes import AUTO_EPOCHS, DEFAULT_RAMP, WHOLE_RUN, make_schedule, place_phases
from pdp.schedule.time import Time

_FRACTIONS = {"recipe.lr_warmup": 0.05, "schedule.warmup": 0.16, "schedule.ramp": 0.4}


def check_schedule(config: Config, words: Sequence[str] = (), steps: int | None = None) -> None:
    """Raises one `Refusal` for all times that do not fit into the run, with a command line that would fit.

    `words` are the overrides that were typed. `steps` is the number of steps per epoch; if it is given, times in steps
    are checked too.
    """
    schedule = config.schedule
    for key in ("recipe.lr_warmup", "schedule.warmup", "schedule.ramp"):
        if (value := _get(config, key)) not in (None, "auto"):
            Time.parse(value, key)
    if schedule.ramp is not None and schedule.rate is not None:
        raise Refusal(
            f"schedule.ramp={schedule.ramp} and schedule.rate={schedule.rate} are two spellings of one thing: set "
            "schedule.ramp=null or schedule.rate=null"
        )
    if config.method.name != "dense":
        place_phases(schedule.name, schedule.phases, config.recipe.epochs, None)
    found = misfits(config, steps)
    if not found:
        return
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    for changes in _candidates(config, typed, steps):
        other = copy.deepcopy(config)
        for key, value in changes.items():
            _set(other, key, value)
        if not misfits(other, steps):
            break
    else:
        changes = {"recipe.epochs": str(2 * config.recipe.epochs)}
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in _replaced(changes)]
    line = shlex.join(["python", "train.py", *kept, *(f"{key}={value}" for key, value in changes.items())])
    raise Refusal(
        f"{' and '.join(found)}: more than recipe.epochs={config.recipe.epochs}; this line would fit: {line}"
        if words
        else f"{' and '.join(found)}: more than recipe.epochs={config.recipe.epochs}; these would fit: "
        + " ".join(f"{key}={value}" for key, value in changes.items())
    )


def misfits(config: Config, steps: int | None = None) -> list[str]:
    """What does not fit into the run, one sentence each; empty if everything fits."""
    found, epochs = [], config.recipe.epochs
    if not epochs:
        return []  # nothing is trained
    warmup = _epochs(Time.parse(config.recipe.lr_warmup), epochs, steps)
    if warmup is not None and warmup > epochs + 1e-9:
        found.append(f"recipe.lr_warmup={config.recipe.lr_warmup} ({warmup:g} epochs) does not fit")
    if (start_and_length := _ramp(config, steps)) is not None:
        start, length = start_and_length
        spelling = "schedule.rate" if config.schedule.rate is not None else "schedule.ramp"
        value = config.schedule.rate if config.schedule.rate is not None else config.schedule.ramp or "null"
        cut = config.schedule.name == "oneshot"
        found.append(
            f"the ramp does not fit: schedule.warmup={config.schedule.warmup} ({start:g} epochs) and "
            + ("the cut itself (1 epoch)" if cut else f"{spelling}={value} ({length:g} epochs)")
        )
    return found


def _ramp(config: Config, steps: int | None) -> tuple[float, float] | None:
    """Start and length of the ramp in epochs, if it ends after the run; None if it fits or that is not known yet."""
    schedule, epochs = config.schedule, config.recipe.epochs
    if config.method.name == "dense" or schedule.name in WHOLE_RUN:
        return None
    start, length = _start(config, steps), _length(config, steps)
    if start is None or length is None:
        return None  # given in steps: known only when the data is open
    if schedule.warmup != "auto" and (schedule.unit == "epoch" or steps):
        values: dict[str, Any] = {key: getattr(schedule, key) for key in ("warmup", "ramp", "rate", "unit")}
        try:
            make_schedule(schedule.name, epochs, steps_per_epoch=steps, **values)
        except Refusal:
            return start, length
        return None
    return (start, length) if start + length > epochs + 1e-9 else None


def _start(config: Config, steps: int | None) -> float | None:
    """The least number of epochs before the ramp; None if that depends on the unknown number of steps per epoch."""
    if config.schedule.warmup == "auto":
        # The automatic start needs this many evaluations, which recipe.evaluate_every may separate from the ends of
        # epochs.
        measured = Time.parse(config.recipe.evaluate_every or "1ep", "recipe.evaluate_every")
        every = _epochs(measured, config.recipe.epochs, steps)
        return None if every is None else AUTO_EPOCHS * every
    exact = _epochs(Time.parse(config.schedule.warmup), config.recipe.epochs, steps)
    return exact if exact is None or config.schedule.unit == "step" else math.floor(exact + 0.5)


def _length(config: Config, steps: int | None) -> float | None:
    """The length of the ramp in epochs; None if that depends on the unknown number of steps per epoch."""
    schedule, whole = config.schedule, config.schedule.unit == "epoch"
    if schedule.name == "oneshot":
        return 1 if whole else 0
    if schedule.rate is not None:
        return math.ceil(1 / schedule.rate - 1e-9) if whole else 1 / schedule.rate
    ramp = DEFAULT_RAMP if schedule.ramp is None else Time.parse(schedule.ramp)
    exact = _epochs(ramp, config.recipe.epochs, steps)
    return exact if exact is None or not whole else max(1, math.floor(exact + 0.5))


def _epochs(time: Time, epochs: int, steps: int | None) -> float | None:
    if time.unit == "it":
        return time.value / steps if steps else None
    return time.value if time.unit == "ep" else time.value * epochs


def _candidates(config: Config, typed: Set[str], steps: int | None) -> Iterator[dict[str, str]]:
    """Changes that might make the times fit; those that keep most of what was typed come first."""
    epochs, schedule = config.recipe.epochs, config.schedule
    ramp = "schedule.rate" if schedule.rate is not None else "schedule.ramp"
    own = _recipe_epochs(config.recipe.name)
    rate: dict[str, str] = {}
    lr_warmup = Time.parse(config.recipe.lr_warmup)
    if (asked := _epochs(lr_warmup, epochs, steps)) is not None and asked > epochs:
        rate["recipe.lr_warmup"] = _fraction("recipe.lr_warmup", asked, own)
    if _ramp(config, steps) is None:
        yield rate
        return
    start, length = _start(config, steps) or 0, _length(config, steps) or 0
    oneshot = schedule.name == "oneshot"
    began = {"schedule.warmup": _fraction("schedule.warmup", start, own if schedule.warmup != "auto" else None)}
    # A recipe's own times are written as fractions of its own run.
    grew = {} if oneshot else {"schedule.ramp": _fraction("schedule.ramp", length, own)}
    if "schedule.warmup" not in typed and ramp not in typed:
        yield rate | began | grew
    if not oneshot and "schedule.warmup" in typed and start < epochs:
        yield rate | {"schedule.ramp": f"{math.floor(epochs - start)}ep"}
        yield rate | {"schedule.ramp": f"{math.floor(100 * (epochs - start) / epochs) / 100:g}"}
    if ramp in typed:
        yield rate | began
        yield rate | {"schedule.warmup": f"{max(0, math.floor(epochs - length))}ep"}
    yield rate | ({"schedule.warmup": "0.5"} if oneshot else {"schedule.warmup": "0.16", "schedule.ramp": "0.4"})
    yield rate | ({"schedule.warmup": "0"} if oneshot else {"schedule.warmup": "0", "schedule.ramp": "0.4"})


def _fraction(key: str, epochs: float, own: int | None) -> str:
    """A time of the recipe as a fraction of the recipe's own run; the usual fraction if that is unknown."""
    share = epochs / own if own and 0 < epochs < own else _FRACTIONS[key]
    return f"{share:.2g}"


def _recipe_epochs(name: str) -> int | None:
    if name not in choices("recipe"):
        return None
    said = yaml.safe_load((CONF / "recipe" / f"{name}.yaml").read_text(encoding="utf-8"))
    return said["recipe"].get("epochs")


def _replaced(changes: dict[str, str]) -> set[str]:
    return {*changes, *({"schedule.rate"} if "schedule.ramp" in changes else ())}


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _set(config: Config, key: str, value: str) -> None:
    group, _, name = key.rpartition(".")
    setattr(getattr(config, group), name, value)
    if key == "schedule.ramp":
        config.schedule.rate = None
