"""Whether a schedule fits into its run; needs neither data nor torch."""

from __future__ import annotations

import math

from pdp.config.schema import Config, ScheduleConfig
from pdp.errors import Refusal
from pdp.schedule.shapes import AUTO_EPOCHS, DEFAULT_RAMP, WHOLE_RUN, place_phases
from pdp.schedule.time import Time


def check_schedule(config: Config) -> None:
    """Raises `Refusal` for a ramp that does not fit into the run, or one said twice."""
    schedule, epochs = config.schedule, config.recipe.epochs
    warmup = None if schedule.warmup == "auto" else Time.parse(schedule.warmup, "schedule.warmup")
    ramp = None if schedule.ramp is None else Time.parse(schedule.ramp, "schedule.ramp")
    if ramp is not None and schedule.rate is not None:
        raise Refusal(
            f"schedule.ramp={schedule.ramp} and schedule.rate={schedule.rate} are two spellings of one thing: set "
            "schedule.ramp=null or schedule.rate=null"
        )
    if config.method.name == "dense":
        return
    place_phases(schedule.name, schedule.phases, epochs, None)
    if schedule.name in WHOLE_RUN:
        return
    start, length = _start(warmup, schedule, epochs), _length(ramp, schedule, epochs)
    if start is None or length is None:
        return  # in steps: known when the data are
    if start + length > epochs + 1e-9:
        spelling = "schedule.rate" if schedule.rate is not None else "schedule.ramp"
        raise Refusal(
            f"the ramp does not fit: schedule.warmup={schedule.warmup} ({start:g} epochs) and "
            + ("the cut itself (1 epoch)" if schedule.name == "oneshot" else f"{spelling} ({length:g} epochs)")
            + f" are more than recipe.epochs={epochs}: change schedule.warmup, {spelling} or recipe.epochs"
        )


def _start(warmup: Time | None, schedule: ScheduleConfig, epochs: int) -> float | None:
    """Epochs before the ramp, at the earliest; None where only the number of steps per epoch would tell."""
    if warmup is None:
        return AUTO_EPOCHS
    if warmup.unit == "it":
        return None
    if schedule.unit == "epoch":
        return warmup.epochs(epochs)
    return warmup.value if warmup.unit == "ep" else warmup.value * epochs


def _length(ramp: Time | None, schedule: ScheduleConfig, epochs: int) -> float | None:
    """Epochs of the ramp; None where only the number of steps per epoch would tell."""
    whole = schedule.unit == "epoch"
    if schedule.name == "oneshot":
        return 1 if whole else 0
    if schedule.rate is not None:
        return math.ceil(1 / schedule.rate - 1e-9) if whole else 1 / schedule.rate
    ramp = ramp or DEFAULT_RAMP
    if ramp.unit == "it":
        return None
    if whole:
        return max(1, ramp.epochs(epochs))
    return ramp.value if ramp.unit == "ep" else ramp.value * epochs
