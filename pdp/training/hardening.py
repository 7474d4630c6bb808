"""What the hard model lost against the one in training; if over half a point, the user is told what reduces it."""

from __future__ import annotations

from collections.abc import Callable

from pdp.config.check_effects import temperature_mode
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.methods.options import CsOptions, PdpOptions
from pdp.runs.record import Record
from pdp.schedule.shapes import WHOLE_RUN, make_schedule
from pdp.wording import percent

TOLD_FROM = 0.005  # absolute for an accuracy, relative for a perplexity
_LONGEST = 1000  # epochs, up to which a length is looked for that reaches the target


def lost(metric_name: str, higher_is_better: bool, soft: float, hard: float) -> float:
    """How much worse the hard model is: the loss of score in [0, 1], or the relative increase of a perplexity."""
    if higher_is_better:
        return soft - hard
    return (hard - soft) / abs(soft) if soft else 0.0


def note_gap(
    record: Record, config: Config, higher_is_better: bool, say: Callable[[str], None], ended_at: float = 1.0
) -> None:
    """Notes the gap of a finished run in its record, and passes it to `say`; `ended_at` is `gap_note`'s."""
    if note := gap_note(config, record.metric_name, higher_is_better, record.metric_soft, record.hard, ended_at):
        record.notes.append(note)
        say(note)


def gap_note(
    config: Config, metric_name: str, higher_is_better: bool, soft: float, hard: float, ended_at: float = 1.0
) -> str | None:
    """One sentence for the record and the terminal; None if making the mask hard cost less than half a point.

    `ended_at` is the fraction of the target at which training ended; below 1 that is told whatever it cost.
    """
    told = lost(metric_name, higher_is_better, soft, hard) > TOLD_FROM
    of = "soft" if _is_soft(config) else "in training"
    if higher_is_better:
        words = f"{metric_name} {100 * soft:.2f} % {of}, {100 * hard:.2f} % hard"
    else:
        words = f"{metric_name} {soft:.2f} {of}, {hard:.2f} hard"
    if ended_at < 1:
        ended = f"training ended at {percent(ended_at)} of the target: the rest was pruned untrained"
        return f"{ended}{f' ({words})' if told else ''}; {_longer(config)}"
    if not told:
        return None
    what = "the mask was still soft when it was made hard"
    return f"{what if _is_soft(config) else 'the hard model is worse than the one in training'} ({words}): " + remedy(
        config
    )


def _is_soft(config: Config) -> bool:
    """Whether the method's mask has values between 0 and 1 in training."""
    return isinstance(config.method, PdpOptions | CsOptions)


def _longer(config: Config) -> str:
    """What lets a run reach its target before it ends."""
    schedule = config.schedule
    if schedule.unit == "step":
        return f"give more than recipe.epochs={config.recipe.epochs}"
    for epochs in range(config.recipe.epochs + 1, _LONGEST):
        try:
            made = make_schedule(schedule.name, epochs, warmup=schedule.warmup, ramp=schedule.ramp, rate=schedule.rate)
        except Refusal:
            continue
        if made.fraction(epochs - 1, made.start) == 1:
            return f"give recipe.epochs={epochs} or schedule.unit=step"
    return "give schedule.unit=step"


def remedy(config: Config) -> str:
    """The option that would reduce the gap of this run."""
    method = config.method
    if not isinstance(method, PdpOptions):
        found = []
        if config.sparsity is not None and getattr(method, "controller", "") == "none":
            found.append("method.controller=cubic comes to the target in training")
        if config.model.task == "images" and not config.recipe.recalibrate_bn:
            found.append("recipe.recalibrate_bn=50 gives the hard model statistics of its own")
        return ", and ".join(found) or f"train for longer than recipe.epochs={config.recipe.epochs}"
    mode = temperature_mode(config)
    if method.anneal == "none":
        if mode == "learned":
            return "give method.temperature_mode=relative with method=pdp_annealed, which ends hard"
        lower = "temperature" if mode == "absolute" else "kappa"
        return f"give method=pdp_annealed, whose temperature ends hard, or a lower method.{lower}"
    key = "kappa_end" if method.kappa_end is not None else "temperature_end"
    ends = getattr(method, key)
    ramp = "" if config.schedule.name in (*WHOLE_RUN, "oneshot") else "schedule.ramp, "
    return f"lower method.{key}={ends:g}, or leave more of the run after the target ({ramp}method.anneal_share)"
