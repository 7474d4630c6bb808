"""From the schedule to the layers: which fraction of the target is pruned now, each layer's share and its cut."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch

from pdp.methods.method import Method, Moment
from pdp.pruner.budget import fix_budget
from pdp.pruner.counted import check_metric
from pdp.pruner.parts import Parts, check_alive, moment_of
from pdp.schedule.shapes import Schedule, place_schedule, starts_after


def schedule_of(
    method: Method, asked: Schedule | str | dict[str, Any] | None, epochs: int, steps_per_epoch: int | None
) -> Schedule | None:
    """The schedule that is asked for, completed by the method's own; None for a method that does not prune."""
    if not method.prunes:
        return None
    own = {"name": method.schedule, "unit": method.unit, "ramp": method.ramp}
    return place_schedule(asked, own, epochs, steps_per_epoch)


def phase_of(pruner: Parts) -> str:
    """`Pruner.phase`."""
    if pruner.finished:
        return "hard"
    if pruner.fraction == 0:
        return "dense"
    return "full" if pruner.fraction == 1 else "ramp"


def at_target(pruner: Parts) -> bool:
    """`Pruner.at_target`."""
    if pruner.quantizer is not None and not pruner.quantizer.active:
        return False
    if not pruner.method.prunes:
        return True
    reached = pruner.target is not None and pruner.pattern.reached(pruner.layers) > pruner.target - 1e-3
    return pruner.fraction == 1 and (pruner.method.exact or reached)


def start_epoch(pruner: Parts, epoch: int, metric: float | None) -> None:
    """`Pruner.start_epoch`."""
    check_alive(pruner)
    if pruner.method.prunes:
        pruner.guard.check_places()
        pruner.guard.check_numbers()
    pruner.counted.begin(epoch, pruner.steps)
    if metric is not None:
        pruner.metrics.append(check_metric(metric, pruner.upper_bound, _awaited(pruner)))
    pruner.epoch = epoch
    if pruner.quantizer is not None:
        pruner.quantizer.start_epoch(epoch)
    if pruner.schedule is None:
        return
    moment = epoch if pruner.schedule.unit == "epoch" else pruner.steps
    _start_by_itself(pruner, moment)
    _advance(pruner, moment, moment_of(pruner, epoch_start=True))
    pruner.guard.note_gradients()


def note_metric(pruner: Parts, metric: float) -> None:
    """`Pruner.note_metric`."""
    check_alive(pruner)
    pruner.metrics.append(check_metric(metric, pruner.upper_bound, _awaited(pruner)))
    if pruner.schedule is not None and pruner.schedule.unit == "step" and pruner.start is None:
        _start_by_itself(pruner, pruner.steps)
        if pruner.start is not None:
            _advance(pruner, pruner.steps, moment_of(pruner))


def step(pruner: Parts) -> None:
    """`Pruner.step`."""
    check_alive(pruner)
    if pruner.epoch is None:
        raise RuntimeError("call pruner.start_epoch(epoch) before the first pruner.step()")
    if pruner.method.needs_attach and pruner.method.optimizer is None:
        raise RuntimeError(f"method={pruner.method.options.name} needs the optimizer: call pruner.attach(optimizer)")
    if pruner.quantizer is not None and pruner.quantizer.extras and pruner.method.optimizer is None:
        raise RuntimeError("quantize.ranges=learned needs the optimizer: call pruner.attach(optimizer)")
    pruner.steps += 1
    if pruner.quantizer is not None:
        pruner.quantizer.step(pruner.steps, pruner.epoch)
    if pruner.schedule is None:
        return
    pruner.guard.check_places()
    pruner.guard.check_gradients()
    if pruner.schedule.unit == "step":
        if pruner.start is None and pruner.steps >= pruner.schedule.latest_start:
            _start_by_itself(pruner, pruner.steps)
        _advance(pruner, pruner.steps, moment_of(pruner))
    else:
        _update(pruner, moment_of(pruner))
    pruner.guard.note_gradients()


def at_once(pruner: Parts) -> None:
    """`Pruner.at_once`."""
    check_alive(pruner)
    if pruner.schedule is not None and pruner.fraction < 1:
        pruner.epoch = 0
        fix_budget(pruner)
        pruner.fraction = 1.0
        _share_out(pruner, moment_of(pruner, epoch_start=True))
        _update(pruner, moment_of(pruner, epoch_start=True))


def end(pruner: Parts) -> None:
    """Prunes to the target when training is over; the masks are final."""
    if not pruner.fraction:
        fix_budget(pruner)
    pruner.fraction = 1.0
    _share_out(pruner, moment_of(pruner, final=True))
    _update(pruner, moment_of(pruner, final=True))


def _awaited(pruner: Parts) -> bool:
    """Whether the ramp's begin depends on the metrics."""
    return pruner.schedule is not None and pruner.start is None


def _start_by_itself(pruner: Parts, moment: int) -> None:
    """For schedule.warmup=auto: begins the ramp if the metrics allow it, or at the last moment at which it fits."""
    assert pruner.schedule is not None
    if pruner.start is not None:
        return
    by_metrics = starts_after(pruner.metrics, pruner.upper_bound)
    if not by_metrics and moment < pruner.schedule.latest_start:
        return
    if not by_metrics:
        warnings.warn(
            f"schedule.warmup=auto: no start by {pruner.schedule.unit} {moment}, the last at which the ramp fits",
            stacklevel=4,
        )
    pruner.start = moment


def _advance(pruner: Parts, moment: int, now: Moment) -> None:
    assert pruner.schedule is not None
    fraction = pruner.schedule.fraction(moment, pruner.start)
    if fraction and not pruner.fraction:
        fix_budget(pruner)
    pruner.fraction = fraction
    now = replace(now, fraction=fraction)
    _share_out(pruner, now)
    _update(pruner, now)


@torch.no_grad()
def _share_out(pruner: Parts, moment: Moment) -> None:
    pruner.method.share_out(pruner.layers, moment)


@torch.no_grad()
def _update(pruner: Parts, moment: Moment) -> None:
    pruner.method.update(pruner.layers, moment)
