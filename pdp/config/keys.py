"""Which options each group of conf/ has: the schema's dataclasses by group and choice. Needs no torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from pdp.config import data_schema, schema
from pdp.config.groups import CONF, GROUPS
from pdp.config.meanings import Meaning, meanings
from pdp.methods.options import OPTIONS
from pdp.quantize.options import QUANTIZE, Int4wOptions, QuantizeOptions

# By group: what all its choices have, then what some have besides, each with the words that say which.
NODES: dict[str, list[tuple[str, type]]] = {
    "model": [("", schema.ModelConfig)],
    "data": [
        ("", data_schema.DataConfig),
        ("images", data_schema.ImagesDataConfig),
        ("every text", data_schema.TextDataConfig),
        ("classified text", data_schema.TextClassificationDataConfig),
        ("running text", data_schema.LanguageModellingDataConfig),
    ],
    "recipe": [("", schema.RecipeConfig)],
    "prune": [
        ("", schema.PruneConfig),
        ("prune=nm", schema.NmPruneConfig),
        ("prune=channel", schema.ChannelPruneConfig),
        ("prune=block", schema.BlockPruneConfig),
    ],
    "quantize": [("", QuantizeOptions), ("quantize=int8 and int4w", Int4wOptions)],
    "allocation": [("", schema.AllocationConfig)],
    "schedule": [("", schema.ScheduleConfig)],
    "distill": [("", schema.DistillConfig), ("distill=teacher", schema.TeacherConfig)],
    "tracker": [
        ("", schema.TrackerConfig),
        ("tracker=wandb", schema.WandbConfig),
        ("tracker=tensorboard", schema.TensorboardConfig),
    ],
    "method": [(f"method={name}", options) for name, options in OPTIONS.items()],
}
_OF_CHOICE: dict[str, dict[str, Any]] = {
    "method": OPTIONS,
    "prune": schema.PRUNE,
    "quantize": QUANTIZE,
    "distill": schema.DISTILL,
    "tracker": schema.TRACKERS,
}


def of_the_run() -> list[Meaning]:
    """The keys that belong to no group: sparsity, seed, ..., start.run, start.mask."""
    start = [dataclasses.replace(one, name=f"start.{one.name}") for one in meanings(schema.StartConfig)]
    return [one for one in meanings(schema.Config) if one.name not in {*GROUPS, "start"}] + start


def of_group(group: str) -> list[tuple[str, list[Meaning]]]:
    """The options of a group by the choices that have them; those of all choices come first."""
    parts = []
    before: list[type] = []
    for label, options in NODES.get(group, []):
        # What it has from an earlier one is listed there; channels and blocks may have options of the same name.
        seen = {one.name for earlier in before if issubclass(options, earlier) for one in meanings(earlier)}
        if group == "method":
            seen = {"name"}
        else:
            before.append(options)
        parts.append((label, [one for one in meanings(options) if one.name not in seen]))
    return parts


def of_choice(group: str, choice: str) -> list[Meaning]:
    """The options of one choice, including its name."""
    if group in _OF_CHOICE:
        return meanings(_OF_CHOICE[group][choice])
    if group == "data":
        # The file names the schemas of its node.
        text = (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")
        kind = next((one for name, one in data_schema.DATA_SCHEMAS.items() if f"/schema/data/{name}@" in text), None)
        return meanings(kind or data_schema.DataConfig)
    return meanings(NODES[group][0][1]) if group in NODES else []
