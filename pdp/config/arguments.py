"""The overrides that the user typed, read with Hydra's own parser and prepared for composition."""

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
from pdp.config.source import dotted, is_dotted
from pdp.errors import Refusal
from pdp.wording import did_you_mean

_FROM = "from"
_HOME = re.compile(r"^([\w.+]+=)~(?=/|$)")
_PLAIN = re.compile(r"([A-Za-z_+][\w.+]*)=(?!\s*['\"{$])(?!.*\$\{)(.+)", re.ASCII)
_NAMES = ("data.root", "data.train", "data.validation_file", "data.test", "data.text", "data.label", "data.score")
_UNREADABLE = (HydraException, ValueError, RecursionError)


@dataclass(frozen=True)
class Argument:
    """One override: its `key` without plus signs, its parsed `value`, and whether it chooses a file of a group."""

    key: str
    value: Any
    text: str
    is_group: bool

    @property
    def line(self) -> str:
        """The override for composition; it may add any key, because keys are compared with the schema afterwards."""
        return self.text if self.is_group or self.is_hydra else f"++{self.text}"

    @property
    def is_hydra(self) -> bool:
        """Whether it is a setting of Hydra itself."""
        return self.key.split(".")[0].split("/")[0] == "hydra"


def parse(overrides: Sequence[str]) -> list[Argument]:
    """Reads the overrides of one run; raises `Refusal` for deletions, sweeps, and anything that is no override."""
    typed = [_argument(override) for override in parse_overrides(overrides)]
    return [argument for one in typed for argument in _spelled_out(one, typed)]


def parse_overrides(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Each override as Hydra parses it; sweeps such as `model=glob(res*)` need `loader`. Raises `Refusal`."""
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for text in overrides:
        text = _HOME.sub(lambda match: match[1] + os.path.expanduser("~"), text)  # a shell does not expand key=~/x
        if not text.isprintable():
            raise Refusal(f"{text!r} is not an override: give key=value without control characters")
        text = quote_beyond_ascii(text)
        try:
            parsed += _read(parser, text)
        except _UNREADABLE as error:
            raise Refusal(
                f"{text} is not an override: give key=value, and quote a value with special characters: \"key='a b,c'\""
            ) from error
    return parsed


def _read(parser: OverridesParser, text: str) -> list[Override]:
    """Parses the override by Hydra; quotes a value that its grammar cannot read or would read as a number.

    Hydra's grammar knows only ASCII letters and few other signs, but folders, files and columns may have any name.
    """
    plain = _PLAIN.fullmatch(text)
    named = plain is not None and plain[1].lstrip("+") in _NAMES
    try:
        read = parser.parse_overrides([text])
        if not named or not any(type(one) in (int, float, bool) for one in _values(read[0])):
            return read
    except _UNREADABLE:
        if plain is None:
            raise
    assert plain is not None
    key, value = plain[1], plain[2].strip()
    if value.startswith("[") and value.endswith("]"):
        return parser.parse_overrides([f"{key}=[{','.join(map(_quoted, value[1:-1].split(',')))}]"])
    return parser.parse_overrides([f"{key}={','.join(map(_quoted, value.split(',')))}"])


def _values(override: Override) -> list[Any]:
    value = override.value()
    return value if isinstance(value, list) else [value]


def quote_beyond_ascii(text: str) -> str:
    """The override with quotes around values with non-ASCII letters, which Hydra accepts only in quotes."""
    key, equals, value = text.partition("=")
    if not equals or value.isascii():
        return text
    if "'" in value or '"' in value or re.match(r"\s*\w+\(", value):
        return text  # already quoted, or a function of Hydra's
    pieces = re.split(r"([,\[\]{}:])" if value.lstrip()[:1] in ("[", "{") else "(,)", value)
    return f"{key}=" + "".join(piece if piece.isascii() else _quoted(piece) for piece in pieces)


def _quoted(text: str) -> str:
    """The text in quotes, escaped so that Hydra reads back the same text."""
    text = text.strip()
    escaped = re.sub(r"(\\*)(\"|$)", lambda match: match[1] * 2 + ("\\" if match[2] else "") + match[2], text)
    return f'"{escaped}"'


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


def _spelled_out(argument: Argument, typed: Sequence[Argument]) -> list[Argument]:
    """Replaces short forms by what they mean: a model given by its dotted path, and from=<run>."""
    value, keys = argument.value, [one.key for one in typed]
    if argument.key == _FROM:
        if "start.run" in keys:
            raise Refusal(f"{argument.text} and start.run are two spellings of one thing: give one of them")
        return [Argument("start.run", value, f"start.run={argument.text.split('=', 1)[1]}", False)]
    if argument.key == "model" and argument.is_group and isinstance(value, str) and names_own_model(value):
        if "model.name" in keys:
            raise Refusal(f"{argument.text} says what to import, and model.name does too: drop model.name")
        name = dotted(value)
        named = Argument("model.name", name, f"model.name={_quoted(name)}", False)
        return [Argument("model", "import", "model=import", True), named]
    return [argument]


def names_own_model(value: str) -> bool:
    """Whether the value of model=<value> is not a file in conf/model but a dotted path that can be imported."""
    return is_dotted(value) and value not in choices("model")


def spell_out(words: Sequence[str]) -> list[str]:
    """The arguments of a sweep in their long form, for composition by Hydra itself; raises `Refusal`."""
    spelled = []
    for override in parse_overrides(words):
        text, key = str(override.input_line), str(override.key_or_group)
        value = text.split("=", 1)[1] if "=" in text else ""
        parts = [one.strip() for one in value.split(",")]
        own = [one for one in parts if key == "model" and names_own_model(one)]
        if own and len(own) < len(parts):
            raise Refusal(
                f"{text}: models of your own and ours cannot be handed over in one sweep: give them in two, or leave "
                "out hydra/launcher"
            )
        if own:
            spelled += ["model=import", "model.name=" + ",".join(dotted(one) for one in own)]
        else:
            spelled.append(f"start.run={value}" if key == _FROM else text)
    return spelled


def prepare(arguments: Sequence[Argument]) -> list[str]:
    """The overrides to compose, without empty optional groups; a typed ramp resets the rate, and the reverse."""
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
            continue  # an experiment may set options that prune=none does not have; method=dense means the same
        lines.append(argument.line)
    ramp, rate = typed.get("schedule.ramp"), typed.get("schedule.rate")
    if ramp is not None and rate is not None:
        raise Refusal(
            f"schedule.ramp={ramp} and schedule.rate={rate} are two spellings of one thing: give schedule.ramp or "
            "schedule.rate, not both"
        )
    if dense:
        lines.append("method=dense")  # also if an experiment names a method
    if ramp is not None:
        lines.append("++schedule.rate=null")
    if rate is not None:
        lines.append("++schedule.ramp=null")
    return lines


def imagenet_dir() -> str | None:
    """The folder of ImageNet that the environment names; empty if it names none."""
    return os.environ.get("IMAGENET_DIR") or None
