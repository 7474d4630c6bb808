"""Expands sweep arguments such as `method=pdp,gmp seed=0,1` into cells, alike for `-m`, for Slurm and for W&B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from pdp.config import arguments, compose
from pdp.config.groups import CONF
from pdp.errors import Refusal
from pdp.wording import did_you_mean, one_line

SWEEPS = CONF / "sweep"


@dataclass(frozen=True)
class Cell:
    """One combination: the overrides of its run, and those of them that vary in the sweep."""

    overrides: tuple[str, ...]
    varied: str


def lay_out(words: Sequence[str]) -> tuple[list[Override], list[Cell]]:
    """The arguments as Hydra parses them, and every combination in order; raises `Refusal`."""
    with compose.hydra_loader() as loader:
        parsed = arguments.parse_overrides(words, loader)
        try:
            combinations = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        except Exception as error:
            raise Refusal(f"the sweep cannot be laid out: {one_line(error)}") from error
    names = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    cells = [
        Cell(tuple(combination), " ".join(one for one in combination if one.split("=")[0] in names))
        for combination in combinations
    ]
    return parsed, cells


def stored_sweeps() -> list[str]:
    """The names of the sweeps stored in conf/sweep."""
    return sorted(path.stem for path in SWEEPS.glob("*.yaml"))


def read_sweep(name: str) -> dict[str, list[Any]]:
    """The lists of values in conf/sweep/<name>.yaml, by key; raises `Refusal` for a file of any other form."""
    path = SWEEPS / f"{name}.yaml"
    if name not in stored_sweeps():
        raise Refusal(f"{name}: no such sweep in conf/sweep; {did_you_mean(name, stored_sweeps())}")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not values:
        raise Refusal(f"{path} holds no sweep: give a line `key: value` or `key: [value, value]` for each word")
    for key, value in values.items():
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(one, str | int | float) for one in items):
            raise Refusal(f"{path}: {key} takes a value or a list of values")
    return {str(key): value if isinstance(value, list) else [value] for key, value in values.items()}


def stored_words(name: str, typed: Sequence[str] = ()) -> list[str]:
    """A stored sweep as arguments; typed ones replace its own or are appended."""
    keys = {word.partition("=")[0] for word in typed}
    words = [f"{key}={','.join(_word(one) for one in values)}" for key, values in read_sweep(name).items()]
    return [word for word in words if word.partition("=")[0] not in keys] + list(typed)


def wandb_form(name: str, typed: Sequence[str]) -> dict[str, Any]:
    """A stored sweep as a W&B sweep configuration, a grid whose agent calls train.py; every cell is checked."""
    words = stored_words(name, typed)
    if not any(word.partition("=")[0] == "tracker" for word in words):
        words.append("tracker=wandb")
    parsed, cells = lay_out(words)
    for cell in cells:
        compose.compose(cell.overrides)
    parameters: dict[str, Any] = {}
    for override in parsed:
        key = override.get_key_element()
        given = [one.partition("=")[2] for cell in cells for one in cell.overrides if one.partition("=")[0] == key]
        values = list(dict.fromkeys(given))
        parameters[key] = {"values": values} if len(values) > 1 else {"value": values[0]}
    return {
        "name": name,
        "program": "train.py",
        "method": "grid",
        "parameters": parameters,
        "command": ["${env}", "python", "${program}", "${args_no_hyphens}"],
    }


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
