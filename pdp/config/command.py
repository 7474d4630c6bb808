"""Finds the command line that composes to a given configuration."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import OmegaConf

from pdp.config.arguments import parse, parse_overrides
from pdp.config.check import normalise
from pdp.config.check_effects import idle
from pdp.config.compose import compose_tree
from pdp.config.groups import choices, nearest_choice, said
from pdp.config.schema import Config
from pdp.errors import Refusal

# Keys that say how a run is started or was asked for, and not what it is.
_LEFT_OUT = (
    *("resume", "rerun", "dry_run", "provenance", "tracker", "data.unasked", "recipe.name"),
    *("recipe.checkpoint_minutes", "recipe.history_steps"),  # what a run writes while it trains
)
_CHOSEN = ("method.name", "quantize.name", "model.task")  # determined by the choice of their groups
_TO_BE_GIVEN = "???"


def command_of(config: Config) -> str:
    """`python train.py ...` that composes to `config`: the most similar choices, then the keys that differ."""
    own = config.model.library == "import"  # named by its dotted path
    model = config.model.name if own else nearest_choice("model", config.model)
    groups = [f"model={model}", f"data={nearest_choice('data', config.data)}", f"method={config.method.name}"]
    if config.method.name != "dense":
        groups.append(f"prune={config.prune.pattern}")
    if config.quantize.name != "none":
        groups.append(f"quantize={config.quantize.name}")
    name = [] if own else [f"model.name={spell('model.name', config.model.name)}"]
    if name and _TO_BE_GIVEN in said("model", model).get("model", {}).values():
        groups += name
    plain = _composed([*groups, *name])
    recipe = config.recipe.name
    if plain.recipe.name != recipe and recipe in choices("recipe"):
        groups.append(f"recipe={recipe}")
        plain = _composed([*groups, *name])
    known = flat(plain)
    differing = {key: value for key, value in flat(config).items() if known.get(key, ...) != value}
    differing.pop("model.name", None)
    for key, _ in idle(config):
        # Where a file sets it, it does no harm; typed, it would be refused. The recipe also decides the dense run's id.
        if not key.startswith("recipe."):
            differing.pop(key, None)
    return shlex.join(["python", "train.py", *groups, *(f"{key}={spell(key, one)}" for key, one in differing.items())])


def _composed(lines: Sequence[str]) -> Config:
    """The configuration that these overrides compose to, unchecked: it may not be able to run by itself."""
    tree, _, _ = compose_tree(parse(lines))
    plain = cast(Config, OmegaConf.to_object(tree))
    normalise(plain)
    return plain


def flat(config: Config) -> dict[str, Any]:
    """What a run is and where it is stored, by dotted key."""
    values: dict[str, Any] = {}

    def collect(node: Any, path: str) -> None:
        for field in dataclasses.fields(node):
            key, value = path + field.name, getattr(node, field.name)
            if key in _LEFT_OUT or key in _CHOSEN:
                continue
            if dataclasses.is_dataclass(value):
                collect(value, f"{key}.")
            else:
                values[key] = value

    collect(config, "")
    return values


def spell(key: str, value: Any) -> str:
    """The value, spelled so that Hydra reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value if _reads_back(key, value) else _quoted(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}: {spell(key, one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spell(key, one) for one in value) + "]"
    return repr(value)


def _reads_back(key: str, text: str) -> bool:
    if not text or any(sign in text for sign in "'\"[]{},:$ \\"):
        return False
    try:
        (override,) = parse_overrides([f"{key}={text}"])
    except Refusal:
        return False
    value = None if override.is_sweep_override() else override.value()
    return type(value) in (str, int) and str(value) == text


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
