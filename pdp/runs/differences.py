"""Finds the settings that distinguish runs of the same model, data, method and pattern. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdp.runs.store import StoredRun

# Keys that other columns show, that are part of a run's name, or that do not affect a result.
_SHOWN = (
    *("sparsity", "seed", "model.name", "data.name", "method.name", "prune.pattern", "prune.n", "prune.m"),
    *("resume", "rerun", "dry_run", "output_dir", "data.unasked", "recipe.name", "device", "model.hub"),
)
_SHOWN_GROUPS = ("provenance", "tracker")
_MOST = 6  # most values named for one run


def differences(runs: Sequence[StoredRun]) -> dict[Path, str]:
    """What distinguishes each run from others of its model, data, method and pattern, as overrides: "recipe.lr=0.1".

    Compares the values of `config.yaml` that no other column of a table shows; a run without others differs in nothing.
    """
    found = {run.path: "" for run in runs}
    together: dict[tuple[str | None, ...], list[StoredRun]] = {}
    for run in runs:
        if run.values:
            together.setdefault((run.model, run.data, run.method, run.pattern), []).append(run)
    for group in together.values():
        keys = sorted({key for run in group for key in run.values})
        keys = [key for key in keys if key not in _SHOWN and key.partition(".")[0] not in _SHOWN_GROUPS]
        varied = [key for key in keys if len({repr(run.values.get(key)) for run in group}) > 1]
        for run in group:
            words = [f"{key}={_typed(run.values[key])}" for key in varied if key in run.values]
            more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
            found[run.path] = " ".join(words[:_MOST]) + more
    return found


def _typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
