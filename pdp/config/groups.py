"""The groups of conf/ and their choices, read from the folder without Hydra."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_PACKAGE = Path(__file__).resolve().parents[1]
# An installed package contains the folder conf; in a checkout it is beside the package.
_INSTALLED, _CHECKOUT = (_PACKAGE / "conf").resolve(), _PACKAGE.parent / "conf"
CONF = _INSTALLED if (_INSTALLED / "config.yaml").is_file() else _CHECKOUT
GROUPS = {
    "model": "what to train",
    "data": "what on",
    "recipe": "how, apart from pruning",
    "prune": "what one prunable unit is",
    "quantize": "whether weights and activations become integers",
    "method": "how weights are pruned",
    "allocation": "how the target is shared out over the layers",
    "schedule": "how the share grows",
    "distill": "whether a teacher helps",
    "tracker": "where curves go besides the run's own history",
    "experiment": "a whole run in one file",
    "debug": "overlays for trying things",
}


def choices(group: str) -> list[str]:
    """The names that `group` can take; files whose names begin with _ are parts of others."""
    folder = CONF / group
    files = [file for file in folder.rglob("*.yaml") if not file.name.startswith("_")]
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def budgets() -> list[str]:
    """The names of the per-layer budgets in conf/allocation."""
    return sorted(path.stem for path in (CONF / "allocation").glob("*.csv"))


def find_budget(path: str) -> str:
    """The file or folder of this path, if it exists; else the budget of this name in conf/allocation."""
    given = Path(path).expanduser()
    return str(CONF / "allocation" / f"{path}.csv") if not given.exists() and path in budgets() else str(given)


def default_choices() -> dict[str, str]:
    """The default choice of every group, from the defaults list of conf/config.yaml."""
    text = (CONF / "config.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\w+)", text, re.MULTILINE))


def said(group: str, choice: str) -> Mapping[str, Any]:
    """The content of a choice's own file."""
    return yaml.safe_load((CONF / group / f"{choice}.yaml").read_text(encoding="utf-8")) or {}


def nearest_choice(group: str, node: Any) -> str:
    """The choice of `group` whose file has the most values in common with `node`."""

    def agreement(choice: str) -> tuple[int, int, str]:
        values = said(group, choice).get(group) or {}
        same = sum(getattr(node, key, None) == value for key, value in values.items())
        return same, -len(values), choice

    known = choices(group)
    if group == "model":
        # A file that names another model is none of it; one that leaves the name open may be.
        known = [one for one in known if said(group, one)[group].get("name", "???") in (node.name, "???")] or known
    return max(known, key=agreement)
