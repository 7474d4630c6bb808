"""Options that have no effect beside the others of a pruner, each with the reason; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from pdp.errors import Refusal
from pdp.methods.options import GmpOptions, MethodOptions, MovementOptions, PdpOptions
from pdp.schedule.shapes import WHOLE_RUN
from pdp.schedule.time import Time

RELATIVE = ("channel", "block")  # patterns whose temperature is relative unless the user chooses one
LEARNED = ("str", "cs", "granet")  # methods that determine each layer's share themselves
CALIBRATED = ("wanda", "sparsegpt")  # methods that compute their mask from calibration samples
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


@dataclass(frozen=True)
class Setting:
    """What a pruner does: its method, its pattern, what divides the target, and its schedule."""

    method: MethodOptions
    pattern: str  # random, nm, channel or block
    pattern_options: Any  # the pattern's dataclass
    allocation: str  # global, uniform, erk or file
    schedule: Mapping[str, Any]  # name, warmup, ramp, rate and unit
    own_schedule: bool  # whether the schedule's name is the method's own


def idle(setting: Setting) -> Idle:
    """The keys whose values have no effect, each with what takes the effect away and what to change.

    A value that means nothing where nothing else is possible, such as a warm-up of 0, is not among them.
    """
    yield from _of_schedule(setting)
    if isinstance(setting.method, PdpOptions):
        yield from _of_temperature(setting, setting.method)
        yield from _of_annealing(setting.method)
    yield from _of_budget(setting)
    yield from _of_pattern(setting)
    if isinstance(setting.method, MovementOptions):
        yield from _of_movement(setting, setting.method)


def mode_of(method: PdpOptions, pattern: str) -> str:
    """The temperature of PDP's mask: absolute, relative or learned."""
    return method.mode("relative" if pattern in RELATIVE else "absolute")


def check_temperature(method: MethodOptions, pattern: str, typed: Set[str]) -> None:
    """Raises `Refusal` for a `method.temperature` among the keys `typed` where the pattern's temperature is relative.

    There it would have to be told from the default, which the mode depends on.
    """
    mode = getattr(method, "temperature_mode", None)
    if "method.temperature" in typed and (mode == "relative" or pattern in RELATIVE and mode == "auto"):
        raise Refusal(idle_temperature(mode, pattern))


def idle_temperature(mode: str, pattern: str) -> str:
    """Why `method.temperature` has no effect in this mode, with this pattern, and what to give instead."""
    if mode == "relative":
        return "method.temperature has no effect with method.temperature_mode=relative: give method.kappa"
    return (
        f"method.temperature has no effect with prune={pattern}, whose temperature is relative: add "
        "method.temperature_mode=absolute, or give method.kappa"
    )


def check_allocation(
    method: str, pattern: str, allocation: str, path: str | None, typed: Set[str], floors: Mapping[str, bool]
) -> None:
    """Raises `Refusal` for an allocation, or an option of it, that this method and pattern take nothing from.

    `floors` says of least_density and ends whether they hold anything; `typed` are the keys that a person gave.
    """
    if said := idle_allocation(method, pattern, allocation, typed):
        raise Refusal(said)
    if pattern == "nm":
        return
    if method in CALIBRATED and allocation == "global":
        raise Refusal(
            f"allocation=global has no meaning for method={method}, which prunes one block after another: drop it, or "
            "give allocation=uniform, erk or file"
        )
    if allocation == "erk" and pattern == "channel":
        raise Refusal(
            "allocation=erk is a formula for single weights: give allocation=global or uniform, or prune=random"
        )
    if allocation == "file":
        for key, holds in floors.items():
            if holds:
                raise Refusal(
                    f"allocation.{key} has no meaning with allocation=file, whose budgets say what each layer keeps: "
                    "drop it"
                )
    elif path is not None:
        raise Refusal(
            f"allocation.path={path} has no meaning for allocation={allocation}: add allocation=file or drop the path"
        )


def idle_allocation(method: str, pattern: str, allocation: str, typed: Set[str]) -> str | None:
    """Why the first of the keys `typed` that says something of the allocation has no meaning; None if all have."""
    if pattern == "nm":
        for key in ("allocation", "allocation.path", "allocation.least_density", "allocation.ends"):
            if key in typed:
                return f"{key} has no meaning for prune=nm, which prunes every layer alike: drop {key}"
    elif method in LEARNED and "allocation" in typed:
        return f"allocation={allocation} has no meaning for method={method}, which finds it itself: drop it"
    return None


def _of_schedule(setting: Setting) -> Idle:
    schedule, method = setting.schedule, setting.method.name
    name, unit = schedule["name"], schedule["unit"]
    own = f", that of method={method}" if setting.own_schedule else ""
    drop = "drop it" if method in _UNSCHEDULED else "drop it, or give schedule="
    if name in WHOLE_RUN:
        does = "prunes from the first step on" if name == "constant" else "takes the whole run"
        for key in ("warmup", "ramp"):
            if not _is_nothing(schedule[key]):
                other = "oneshot" if method == "asp" else "linear"
                yield f"schedule.{key}", f"schedule={name}{own}, which {does}: {_ending(drop, other)}"
        if schedule["rate"] is not None:
            yield "schedule.rate", f"schedule={name}{own}, which {does}: {_ending(drop, 'linear')}"
    if name == "constant" and unit != "epoch" and not _deals_out_anew(setting):
        yield "schedule.unit", f"schedule=constant{own}, whose share never changes: {_ending(drop, 'linear')}"
    if name == "oneshot":
        for key in ("ramp", "rate"):
            if not _is_nothing(schedule[key]):
                yield f"schedule.{key}", f"schedule=oneshot{own}, which cuts at once: {_ending(drop, 'linear')}"


def _ending(drop: str, schedule: str) -> str:
    return f"{drop}{schedule}" if drop.endswith("=") else drop


def _is_nothing(time: Any) -> bool:
    return time is None or (time != "auto" and not isinstance(time, float) and Time.parse(time).value == 0)


def _deals_out_anew(setting: Setting) -> bool:
    """Whether the method divides the target among the layers at each of the schedule's moments, so that these count."""
    return setting.method.name == "movement" and setting.allocation == "global"


def _of_temperature(setting: Setting, method: PdpOptions) -> Idle:
    mode = mode_of(method, setting.pattern)
    if method.kappa is not None and mode == "absolute":
        if method.temperature_mode == "absolute":
            why = "method.temperature_mode=absolute: give method.temperature, or method.temperature_mode=relative"
        elif method.chosen is not None:
            why = f"method.{method.chosen}, which is absolute: drop it, or give "
            why += "method.temperature_mode=relative" if method.anneal == "none" else "method.kappa_end"
            why += f" in place of method.{method.chosen.partition('=')[0]}"
        else:
            why = (
                f"prune={setting.pattern}, whose temperature is absolute: add method.temperature_mode=relative, "
                "or give method.temperature"
            )
        yield "method.kappa", why
    if mode == "learned" and method.kappa is not None:
        yield "method.temperature", "method.kappa, from which log tau starts: drop one of them"


def _of_annealing(method: PdpOptions) -> Idle:
    if method.anneal == "none":
        other = "method.anneal=geometric" if method.name == "pdp_annealed" else "method=pdp_annealed"
        yield "method.anneal_share", f"method.anneal=none: drop it, or give {other}"
        if method.anneal_from != "target":
            yield "method.anneal_from", f"method.anneal=none: drop it, or give {other}"


def _of_budget(setting: Setting) -> Idle:
    method = setting.method
    if not isinstance(method, PdpOptions | GmpOptions):
        return
    plain = type(method)().budget
    if method.budget != plain and setting.pattern == "nm":
        yield "method.budget", "prune=nm, which prunes every layer alike: drop it, or give prune=random"
    elif method.budget != plain and setting.allocation != "global":
        yield "method.budget", f"allocation={setting.allocation}: drop it, or give allocation=global"


def _of_pattern(setting: Setting) -> Idle:
    if setting.pattern not in RELATIVE:
        return
    if setting.allocation == "file" and getattr(setting.pattern_options, "round_to", 1) != 1:
        why = "allocation=file, whose budgets say how many channels stay: drop it, or give another allocation="
        yield "prune.round_to", why
    instead = OWN_SALIENCY.get(setting.method.name)
    words = f"method={setting.method.name}, which {instead}: drop it, or give method=oneshot"
    if instead and setting.pattern_options.saliency != "rms":
        yield "prune.saliency", words
    if setting.pattern_options.relative_budget:
        return
    if instead:
        yield "prune.relative_budget", words
    elif setting.allocation != "global":
        what = "channels" if setting.pattern == "channel" else "blocks"
        yield (
            "prune.relative_budget",
            f"allocation={setting.allocation}, which compares no {what} of different layers: drop it, or give "
            "allocation=global",
        )


def _of_movement(setting: Setting, method: MovementOptions) -> Idle:
    if method.variant == "hard":
        yield "method.threshold", "method.variant=hard, which prunes by rank: drop it, or add method.variant=soft"
        if method.penalty:
            yield "method.penalty", "method.variant=hard, which has no penalty: drop it, or add method.variant=soft"
    elif setting.allocation != "uniform":
        why = "method.variant=soft, which finds each layer's share itself: drop it, or give method.variant=hard"
        yield "allocation", why
