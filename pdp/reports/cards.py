"""The generated parts of the method cards: options, schedules for several run lengths, results from the records."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from pdp.config.compose import compose
from pdp.config.meanings import meanings
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.methods.checks import PATTERNS_OF
from pdp.methods.options import OPTIONS
from pdp.methods.revisions import CHANGES
from pdp.reports.blocks import fill, mark, table
from pdp.reports.cells import cells
from pdp.reports.sheet import score, target
from pdp.schedule.shapes import Schedule, make_schedule

CARDS = Path("docs/methods")
LENGTHS = (3, 12, 30, 100)  # epochs
_ORDER = ["study", "model", "data", "pattern", "target_sparsity"]
_STEPS = 100  # steps per epoch, for schedules that count steps
_WORDS = {"random": "sparsity=0.9", "nm": "prune=nm", "channel": "prune=channel sparsity=0.5"}
_UNSCHEDULED = {
    "dense": "Nothing is pruned.",
    **dict.fromkeys(
        ("wanda", "sparsegpt"),
        "The whole target at one stroke, before any training (`recipe.epochs=0` is the default); `allocation=uniform`.",
    ),
    "held": "The zeros that the model came with are its mask throughout; each layer's share is what they are.",
}
_TRAINED = {"asp": "model.pretrained=true"}  # overrides that a method needs besides


def write_cards(root: Path, runs: pd.DataFrame) -> dict[Path, str]:
    """The text that each card below `root` must have: a page per method, of which only marked blocks are generated."""
    found = cells(runs)
    pages = {}
    for method in OPTIONS:
        place = root / CARDS / f"{method}.md"
        page = place.read_text(encoding="utf-8") if place.is_file() else _new(method)
        blocks = {
            "options": options_table(method),
            "schedule": schedule_table(method),
            "results": results_table(found, method),
        }
        pages[place] = fill(page, blocks, str(place))
    return pages


def _new(method: str) -> str:
    parts = [f"# {method}", "## Options", mark("options"), "## Schedule and budget", mark("schedule")]
    return "\n\n".join([*parts, "## What our records show", mark("results")]) + "\n"


def options_table(method: str) -> str:
    """Every option with its meaning, its default, and whose value the default is."""
    rows = [
        (f"`method.{one.name}`", f"`{one.default}`", one.text, one.whose)
        for one in meanings(OPTIONS[method])
        if one.name != "name"
    ]
    return table(("option", "default", "meaning", "whose value"), rows) if rows else "It has none.\n"


def schedule_table(method: str) -> str:
    """When the method prunes in runs of several lengths, with the schedule and allocation of its configuration."""
    if method in _UNSCHEDULED:
        return f"{_UNSCHEDULED[method]}\n"
    words = _WORDS[PATTERNS_OF.get(method, ("random",))[0]]
    config = _composed(method, words, "data=digits")
    rows = [_row(config, epochs, str(epochs)) for epochs in LENGTHS]
    imagenet = _composed(method, words, "data=imagenet", "data.root=.")
    if imagenet.schedule != config.schedule:
        rows.append(_row(imagenet, 100, "100, `data=imagenet`"))
    shown = table(("epochs of the run", "first pruned in epoch", "at the target from epoch", "of the run at the target",
                   "changes of the share"), rows)  # fmt: skip
    unit = "step" if config.schedule.unit == "step" else "epoch"
    said = f"`schedule={config.schedule.name}`, `schedule.unit={unit}`"
    implied = words == "prune=nm"
    shares = "the pattern implies every layer's share" if implied else f"`allocation={config.allocation.name}`"
    counted = f"Epochs count from 0; where the share moves by steps, an epoch has {_STEPS} of them here."
    return f"{said}; {shares}. {counted}\n\n{shown}"


def _composed(method: str, words: str, *more: str) -> Config:
    model = "resnet50" if method in _TRAINED else "resnet20"
    return compose(f"model={model} method={method} {words} {_TRAINED.get(method, '')}".split() + list(more))


def _row(config: Config, epochs: int, label: str) -> tuple[str, ...]:
    one = config.schedule
    try:
        schedule = make_schedule(
            one.name, epochs, warmup=one.warmup, ramp=one.ramp, rate=one.rate, unit=one.unit, steps_per_epoch=_STEPS,
            phases=one.phases,
        )  # fmt: skip
    except Refusal:
        return label, "does not fit", "", "", ""
    return label, *_placed(schedule, epochs)


def _placed(schedule: Schedule, epochs: int) -> tuple[str, ...]:
    values = [schedule.fraction(moment, schedule.start) for moment in range(schedule.moments)]
    first = next(moment for moment, value in enumerate(values) if value > 0)
    full = schedule.moments
    while full and values[full - 1] == 1:
        full -= 1
    changes = sum(now != before for before, now in zip([0.0, *values], values, strict=False))
    per_epoch = schedule.moments / epochs

    def epoch(moment: int) -> str:
        return f"{round(moment / per_epoch, 2):g}"

    share = (schedule.moments - full) / schedule.moments
    return epoch(first), epoch(full), f"{100 * share:.0f} %", str(changes)


def results_table(found: pd.DataFrame, method: str) -> str:
    """The method's cells in results/records, one row each; results of earlier revisions are marked as such."""
    mine = found[found.method == method]
    if mine.empty:
        return "No record of it is kept in `results/records`.\n"
    rows = []
    for _, one in mine.sort_values([*_ORDER, "label", "cell"]).iterrows():
        metric = score(one.metric_name, one.metric, one.interval)
        cell = (one.study, f"{one.model} on {one.data}", one.pattern, target(one.target_sparsity), one.label)
        rows.append((*cell, str(one.seeds), f"{one.metric_name} {metric}", score(one.metric_name, one.dense_metric)))
    columns = ("study", "model and data", "pattern", "sparsity", "setting", "seeds", "hard test metric", "dense")
    return table(columns, rows) + _changed_since(method, " ".join(mine.label))


def _changed_since(method: str, labels: str) -> str:
    """What the last revisions changed, if records of earlier ones are shown."""
    changes = [text for key, text in CHANGES.items() if re.split(r"[+/]", key)[0] == method]
    return (
        f"\nChanged since the records with an earlier revision: {'; '.join(changes)}.\n" if "revision" in labels else ""
    )
