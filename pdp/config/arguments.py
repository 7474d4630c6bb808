"""What was typed: overrides read with Hydra's own parser and made ready for composition."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pdp.config.groups import GROUPS, choices
from pdp.errors import Refusal
from pdp.wording import did_you_mean

_HOME = re.compile(r"^([\w.+]+=)~(?=/|$)")


@dataclass(frozen=True)
class Argument:
    """One override: `key` without plus signs, the parsed `value`, and whether it picks a file of a group."""

    key: str
    value: Any
    text: str
    is_group: bool

    @property
    def line(self) -> str:
        """The override for composition; a value may name any key, which is compared with the schema after."""
        return self.text if self.is_group or self.is_hydra else f"++{self.text}"

    @property
    def is_hydra(self) -> bool:
        """Whether it sets Hydra itself."""
        return self.key.split(".")[0].split("/")[0] == "hydra"


def parse(overrides: Sequence[str]) -> list[Argument]:
    """Reads overrides of one run; raises `Refusal` for what is no override, a deletion or a sweep."""
    return [_argument(override) for override in parse_overrides(overrides)]


def parse_overrides(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Hydra's reading of each override; sweeps such as `model=glob(res*)` need `loader`; raises `Refusal`."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for text in overrides:
        text = _HOME.sub(lambda match: match[1] + os.path.expanduser("~"), text)  # a shell leaves key=~/x as it is
        if not text.isprintable():
            raise Refusal(f"{text!r} is not an override: give key=value without control characters")
        try:
            parsed += parser.parse_overrides([text])
        except (HydraException, ValueError, RecursionError) as error:
            raise Refusal(
                f"{text} is not an override: give key=value, and quote a value with special characters: \"key='a b,c'\""
            ) from error
    return parsed


def _argument(override: Override) -> Argument:
    text, key = str(override.input_line), override.key_or_group
    name = f"{key}@{override.package}" if override.package is not None else key
    if override.is_delete():
        raise Refusal(f"{text}: nothing can be taken out with ~; give {key}=null where a key may be empty")
    if override.package is not None:
        raise Refusal(f"{name}: a group cannot be placed elsewhere with @; give {key}=<name>")
    if override.is_sweep_override():
        raise Refusal(f"{text} names several values: add -m to run each of them, or quote it to mean one value")
    group = key.split("/")[0]
    if "/" in key and group in GROUPS:
        rest = key.split("/", 1)[1]
        raise Refusal(f"{text}: folders of a group are part of its value: give {group}={rest}/<name>")
    value = override.value()
    is_group = key in GROUPS and not isinstance(value, dict)
    text = text.lstrip("+")
    if is_group:
        if isinstance(value, list):
            raise Refusal(f"{text}: {key} takes one name; to run several give {key}=a,b with -m")
        if value is not None and not isinstance(value, str):
            raise Refusal(f"{text}: no such {key}; {did_you_mean(str(value), choices(key))}")
        if value is not None and (value == "" or "???" in value or "$" in value):
            raise Refusal(f"{text}: {key} takes a name; {did_you_mean(value, choices(key))}")
    return Argument(key, value, text, is_group)


def prepare(arguments: Sequence[Argument]) -> list[str]:
    """The overrides to compose: of ramp and rate the untyped one is reset, empty optional groups are left out."""
    typed = {argument.key: argument.value for argument in arguments}
    dense = typed.get("prune") == "none" and "method" not in typed
    lines = []
    for argument in arguments:
        if argument.is_group and argument.value is None:
            if argument.key not in ("experiment", "debug"):
                raise Refusal(
                    f"{argument.text}: {argument.key} takes a name; known: {', '.join(choices(argument.key))}"
                )
            continue
        if dense and argument.key == "prune" and typed.get("experiment"):
            continue  # the experiment may set options that prune=none lacks; method=dense says the same
        lines.append(argument.line)
    ramp, rate = typed.get("schedule.ramp"), typed.get("schedule.rate")
    if ramp is not None and rate is not None:
        raise Refusal(
            f"schedule.ramp={ramp} and schedule.rate={rate} are two spellings of one thing: give schedule.ramp or "
            "schedule.rate, not both"
        )
    if dense:
        lines.append("method=dense")  # also where an experiment names a method
    if ramp is not None:
        lines.append("++schedule.rate=null")
    if rate is not None:
        lines.append("++schedule.ramp=null")
    return lines


def imagenet_dir() -> str | None:
    """Where the environment says ImageNet lies."""
    return os.environ.get("IMAGENET_DIR") or None
