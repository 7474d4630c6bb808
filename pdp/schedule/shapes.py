"""Schedules: the fraction of the target share as a stateless function of training time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pdp.errors import Refusal
from pdp.keywords import check_names
from pdp.schedule.time import Time

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cubic": lambda progress: 1 - (1 - progress) ** 3,
    "constant": lambda progress: 1.0,
    "oneshot": lambda progress: 1.0,
}
SCHEDULES = (*SHAPES, "sigmoid", "alternating")
WHOLE_RUN = ("constant", "sigmoid", "alternating")  # shapes that have no warm-up and no ramp
# AC/DC's phases in a run of 100 epochs: pruned from epoch 10, dense again from 15, and so on; pruned for good from 85.
_PHASES = tuple(moment / 100 for moment in (*range(10, 80, 5), 85))
_SIGMOID_ENDS = 0.95
_LEAST_HALF = 6.0  # smallest argument of the sigmoid at both ends of a run, so that it begins near 0 and ends near 1
_KEYS = {"name", "warmup", "ramp", "rate", "unit", "phases"}  # of a schedule that a person gives
AUTO_EPOCHS = 5  # the automatic start: the metric was over half of its upper bound so many epochs in a row
PAPERS_EPOCHS = 100
DEFAULT_WARMUP = Time(0.16, "run")
DEFAULT_RAMP = Time(0.4, "run")


@dataclass(frozen=True)
class Schedule:
    """The fraction of the target share over training: dense until `start`, then a ramp that takes `length` moments.

    A moment is an epoch or an optimizer step, as `unit` says; moments count from 0. At moment i >= start the fraction
    is shape(min(1, speed * (i - start + 1))), where speed is the rate if one was given (PDP: r_l = R_l * min(1, eps *
    (e - s + 1))) and 1 / length otherwise.

    Two names are not ramps. "sigmoid" is OptG's sigmoid(e - E/2), with epoch e and E epochs in total. For runs shorter
    than the authors' 100 epochs it is adapted so that they reach the target: below 12 epochs its slope is 12 / E, it is
    rescaled to begin at 0, and the target holds in the last twentieth of the run; at 100 epochs this changes nothing.
    "alternating" is AC/DC: the fraction is 0 or 1, and changes at each of the `phases`, the first of which prunes.
    """

    name: str
    unit: str
    start: int | None  # None: the start is found during training (schedule.warmup=auto)
    length: int
    speed: float
    moments: int  # length of the run in moments
    epochs: float = 100.0  # length of the run in epochs, which "sigmoid" needs
    phases: tuple[float, ...] = _PHASES  # for "alternating": the times of change, as fractions of the run

    def fraction(self, moment: int, start: int | None) -> float:
        """The fraction of the target in [0, 1] at `moment` (counted from 0) for a ramp that begins at `start`."""
        if self.name == "alternating":
            # Even the shortest run ends at its target, not dense.
            if moment >= self.moments - 1:
                return 1.0
            return float(sum(change <= moment / self.moments + 1e-11 for change in self.phases) % 2)
        if self.name == "sigmoid":
            return _sigmoid(moment / self.moments, self.epochs)
        if start is None or moment < start:
            return 0.0
        done = moment - start + 1
        # In floating point 107 * (1 / 107) is less than 1, so the end of the ramp is compared as a whole number.
        return SHAPES[self.name](1.0 if done >= self.length else min(1.0, self.speed * done))

    @property
    def latest_start(self) -> int:
        """The last moment at which the ramp can begin and still end within the run."""
        return self.moments - self.length


def make_schedule(
    name: str,
    epochs: int,
    *,
    warmup: str | float | Time = "16ep",
    ramp: str | float | Time | None = None,
    rate: float | None = None,
    unit: str = "epoch",
    steps_per_epoch: int | None = None,
    phases: Sequence[str | float | Time] = (),
) -> Schedule:
    """Makes the schedule of a run; raises `Refusal` where the run would end before its ramp does.

    `warmup` is a time or "auto". `ramp` (a time) and `rate` (share of the target per epoch) are two ways to give the
    same thing; with neither, the ramp takes 0.4 of the run. `phases` are the times at which "alternating" changes,
    beginning with a change to pruned; without them AC/DC's own are used.
    """
    if name not in SCHEDULES:
        raise Refusal(f"schedule={name} is unknown: choose one of {', '.join(SCHEDULES)}")
    if unit not in ("epoch", "step"):
        raise Refusal(f"schedule.unit={unit} is unknown: choose epoch or step")
    if ramp is not None and rate is not None:
        raise Refusal(f"schedule.ramp={ramp} and schedule.rate={rate} say the same thing twice: give one")
    if rate is not None and not 0 < rate <= 1:
        raise Refusal(f"schedule.rate={rate} must lie in (0, 1]: the share of the target added each epoch")
    if unit == "step" and not steps_per_epoch:
        raise Refusal("schedule.unit=step needs steps_per_epoch")

    def place(time: str | float | Time, key: str) -> int:
        parsed = Time.parse(time, key)
        return parsed.epochs(epochs, steps_per_epoch) if unit == "epoch" else parsed.steps(epochs, steps_per_epoch)

    moments = epochs if unit == "epoch" else epochs * (steps_per_epoch or 1)
    if not epochs:  # nothing is trained: there is no moment but the end
        return Schedule(name, unit, 0, 1, 1.0, 0, 0.0)
    placed = place_phases(name, phases, epochs, steps_per_epoch)
    if name in ("sigmoid", "alternating"):
        return Schedule(name, unit, 0, 1, 1.0, moments, float(epochs), placed)
    if rate is not None:
        speed = rate if unit == "epoch" else rate / (steps_per_epoch or 1)
        length = math.ceil(1 / speed - 1e-9)
    else:
        length = max(1, place(DEFAULT_RAMP if ramp is None else ramp, "schedule.ramp"))
        speed = 1 / length
    if name in ("constant", "oneshot"):
        length, speed = 1, 1.0
    start = None if warmup == "auto" else 0 if name == "constant" else place(warmup, "schedule.warmup")
    asked = [
        0.0 if time in (None, "auto") else _exact(time, epochs, moments, steps_per_epoch) for time in (warmup, ramp)
    ]
    if rate is None and name not in ("constant", "oneshot") and (start or 0) + length > moments:
        exact = asked[0] + (asked[1] if ramp is not None else DEFAULT_RAMP.value * moments)
        if exact <= moments + 1e-9:  # the ramp fits, and only rounding both times up made it one moment too long
            start = None if start is None else min(start, moments - 1)
            length = moments - (start or 0)
            speed = 1 / length
    if (start or 0) + length > moments:
        given = f"schedule.rate={rate}" if rate is not None else f"schedule.ramp={ramp or DEFAULT_RAMP}"
        raise Refusal(
            f"the ramp does not fit: schedule.warmup={warmup} and {given} take {(start or 0) + length} {unit}s "
            f"of a run of {moments}; shorten schedule.warmup or schedule.ramp, or raise recipe.epochs={epochs}"
        )
    return Schedule(name, unit, start, length, speed, moments)


def _exact(time: str | float | Time | None, epochs: int, moments: int, steps_per_epoch: int | None) -> float:
    """A time in moments (epochs or steps), not rounded."""
    parsed = Time.parse(time)  # type: ignore[arg-type]
    if parsed.unit == "run":
        return parsed.value * moments
    of_epochs = parsed.value if parsed.unit == "ep" else parsed.value / (steps_per_epoch or 1)
    return of_epochs * moments / epochs


def place_phases(
    name: str, phases: Sequence[str | float | Time], epochs: int, steps_per_epoch: int | None
) -> tuple[float, ...]:
    """AC/DC's times of change as fractions of the run; raises `Refusal` for unordered phases or an even number."""
    if not phases:
        return _PHASES
    given = ",".join(map(str, phases))
    if name != "alternating":
        raise Refusal(f"schedule.phases=[{given}] has no effect with schedule={name}: give schedule=alternating")
    times = [Time.parse(one, "schedule.phases") for one in phases]
    known = [one for one in times if one.unit != "it" or steps_per_epoch]
    placed = [
        one.value
        if one.unit == "run"
        else one.value / epochs
        if one.unit == "ep"
        else one.value / (epochs * (steps_per_epoch or 1))
        for one in known
    ]
    if any(later <= earlier for earlier, later in zip(placed, placed[1:], strict=False)) or placed and placed[-1] >= 1:
        raise Refusal(
            f"schedule.phases=[{given}] must grow and lie within the run of {epochs} epochs: each is a time of change"
        )
    if len(times) % 2 == 0:
        raise Refusal(
            f"schedule.phases=[{given}] would end dense: give an odd number of changes, pruned from the first"
        )
    return tuple(placed)


def _sigmoid(progress: float, epochs: float) -> float:
    """OptG's sigmoid at the fraction `progress` of a run; values within 1e-6 of 0 or 1 become exactly 0 or 1."""
    if progress >= _SIGMOID_ENDS:
        return 1.0
    half = max(_LEAST_HALF, epochs / 2)
    lowest = 1 / (1 + math.exp(half))
    value = (1 / (1 + math.exp(-half * (2 * progress - 1))) - lowest) / (1 - 2 * lowest)
    return 0.0 if value < 1e-6 else 1.0 if value > 1 - 1e-6 else value


def place_schedule(
    given: Schedule | str | dict[str, Any] | None, own: dict[str, Any], epochs: int, steps_per_epoch: int | None
) -> Schedule:
    """The schedule for what a library user passes: a `Schedule`, a name, or a dict of `make_schedule`'s arguments.

    What the user leaves out comes from `own`, the method's defaults: name, unit (epochs, where the steps per epoch are
    not known) and ramp. A method without a ramp of its own gets the paper's times relative to the run: dense for 0.16
    of it, then 0.015 of the target per epoch in a run of 100 epochs. These count in steps where the steps are known and
    the run is shorter than the paper's. Raises `Refusal`.
    """
    if isinstance(given, Schedule):
        return given
    values: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given or {})
    check_names("schedule", values, _KEYS)
    if given is None and steps_per_epoch and epochs < PAPERS_EPOCHS:
        values["unit"] = "step"  # epochs would make the ramp of so short a run too coarse
    values.setdefault("warmup", DEFAULT_WARMUP)
    if not any(key in values for key in ("ramp", "rate")):
        if own["ramp"] is not None:
            values["ramp"] = own["ramp"]
        else:
            rate = 0.015 * PAPERS_EPOCHS / max(1, epochs)
            if rate > 1 and values.get("unit") == "step":  # the ramp is shorter than an epoch
                values["ramp"] = Time(1 / (0.015 * PAPERS_EPOCHS), "run")
            else:
                values["rate"] = min(1.0, rate)
    values.setdefault("unit", own["unit"] if steps_per_epoch else "epoch")
    return make_schedule(values.pop("name", own["name"]), epochs, steps_per_epoch=steps_per_epoch, **values)


def starts_after(metrics: Sequence[float], upper_bound: float = 1.0) -> bool:
    """Whether pruning starts now: each of the last five validation metrics was over half of `upper_bound`."""
    last = metrics[-AUTO_EPOCHS:]
    return len(last) == AUTO_EPOCHS and all(metric > upper_bound / 2 for metric in last)
