"""The metric lost when the soft mask is made hard; if it is over half a point, the user is told what reduces it."""

from __future__ import annotations

from collections.abc import Callable

from pdp.config.schema import Config
from pdp.methods.options import PdpOptions
from pdp.runs.record import Record

TOLD_FROM = 0.005  # absolute for an accuracy, relative for a perplexity


def lost(metric_name: str, higher_is_better: bool, soft: float, hard: float) -> float:
    """How much worse the hard model is: the loss of score in [0, 1], or the relative increase of a perplexity."""
    if higher_is_better:
        return soft - hard
    return (hard - soft) / abs(soft) if soft else 0.0


def note_gap(record: Record, config: Config, higher_is_better: bool, say: Callable[[str], None]) -> None:
    """Notes the gap of a finished run in its record, and passes it to `say`."""
    if note := gap_note(config, record.metric_name, higher_is_better, record.metric_soft, record.hard):
        record.notes.append(note)
        say(note)


def gap_note(config: Config, metric_name: str, higher_is_better: bool, soft: float, hard: float) -> str | None:
    """One sentence for the record and the terminal; None if making the mask hard cost less than half a point."""
    gap = lost(metric_name, higher_is_better, soft, hard)
    if not gap > TOLD_FROM:
        return None
    if higher_is_better:
        words = f"{metric_name} {100 * soft:.2f} % soft, {100 * hard:.2f} % hard"
    else:
        words = f"{metric_name} {soft:.2f} soft, {hard:.2f} hard"
    return f"the mask was still soft when it was made hard ({words}): {remedy(config)}"


def remedy(config: Config) -> str:
    """The option that would reduce the gap of this run."""
    method = config.method
    if not isinstance(method, PdpOptions):
        return "recipe.recalibrate_bn=50 gives the hard model statistics of its own"
    if method.anneal == "none":
        if method.temperature_mode == "learned":
            return "give method.temperature_mode=relative with method=pdp_annealed, which ends hard"
        return "give method=pdp_annealed, whose temperature ends hard, or a lower method.kappa or method.temperature"
    key = "kappa_end" if method.kappa_end is not None else "temperature_end"
    ends = getattr(method, key)
    more = "leave more of the run after the target (schedule.ramp, method.anneal_share)"
    return f"lower method.{key}={ends:g}, or {more}"
