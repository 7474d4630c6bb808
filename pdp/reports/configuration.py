"""docs/configuration.md: every configuration key with its type, default and meaning, from the schema."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pdp.config.groups import GROUPS, choices, default_choices
from pdp.config.keys import NODES, of_group, of_the_run
from pdp.config.meanings import Meaning
from pdp.reports.blocks import table

PAGE = Path("docs/configuration.md")
_INTRODUCTION = """\
# Configuration

Everything is `group=choice` or `key=value` on the command line of `train.py`. `python train.py --help` has what people
change most, `--cfg job` prints a composed configuration. Later wins: schema, recipe, schedule, method, prune, data,
model, experiment, debug, command line. Shares and accuracies are fractions. A time is `16ep` (epochs), `2000it`
(optimizer steps) or `0.16` (of the run). A key without a default is set by the choice in its group or must be given. A
run's identity holds only what differs from these defaults.

This page is written by `python scripts/cards.py` from the comments in `pdp/config/schema.py` and
`pdp/config/data_schema.py` and the `options.py` of `pdp/methods/`, `pdp/patterns/` and `pdp/quantize/`; a test holds it
equal to them.
"""
_COLUMNS = ("key", "type", "default", "meaning")


def configuration_page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, "## The run\n", table(_COLUMNS, _rows("", of_the_run()))]
    chosen = default_choices()
    for group, words in GROUPS.items():
        names = [f"`{name}`" for name in choices(group)]
        default = f" Where nothing asks for another: `{chosen[group]}`." if group in chosen else ""
        parts += [f"## `{group}=`\n", f"{words[0].upper()}{words[1:]}. Choices: {', '.join(names)}.{default}\n"]
        for (label, own), (_, options) in zip(of_group(group), NODES.get(group, []), strict=True):
            if label:
                parts += [f"### {_named(label)}\n", f"{(options.__doc__ or '').splitlines()[0]}\n"]
            if group == "method":
                parts.append(f"[Its card](methods/{label.removeprefix('method=')}.md).\n")
            parts.append(table(_COLUMNS, _rows(f"{group}.", own)) if own else "No option of its own.\n")
    return "\n".join(parts)


def _named(label: str) -> str:
    return f"`{label}`" if "=" in label else label[0].upper() + label[1:]


def _rows(prefix: str, found: Iterable[Meaning]) -> list[tuple[str, ...]]:
    return [
        (f"`{prefix}{one.name}`", f"`{one.kind}`", f"`{one.default}`" if one.default else "", one.text) for one in found
    ]
