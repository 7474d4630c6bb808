"""Records as one data frame with a row per run, and the other files of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pdp.errors import Refusal
from pdp.methods.options import OPTIONS
from pdp.methods.revisions import conditions, named
from pdp.reports.statistics import cell_of
from pdp.runs.record import RECORD, Record, read_record

FIELDS = tuple(field.name for field in dataclasses.fields(Record))
ORDER = ["study", "model", "data", "method", "pattern", "target_sparsity", "allocation", "epochs", "cell", "seed"]
TUNING = "_tuning"  # studies with this ending chose settings, and are in no table


def read_runs(paths: Iterable[Path], study: str = "") -> pd.DataFrame:
    """The finished ones of these runs, in the order of `ORDER`; raises `Refusal` for a damaged record.

    A run of which there are copies has one row, so that no seed counts twice; raises `Refusal` for two runs of one
    configuration and seed whose records differ, as nothing says which of them counts.

    Columns: the record's fields, study, cell (the first 8 digits of the configuration's hash), setting (what a dense
    baseline must share) and path. The method of a quantized run is called pdp+int8, so that no row takes it for the one
    in floats; base_method is the name without that.
    """
    rows = _once(_row(path, study) for path in paths if (path / RECORD).is_file())
    frame = pd.DataFrame(rows, columns=[*FIELDS, "base_method", "study", "cell", "setting", "path"])
    return frame.sort_values(ORDER, ignore_index=True)


def read_kept(results: Path) -> pd.DataFrame:
    """Every record below `results`/records except those of tuning studies, as from `read_runs`."""
    frames = []
    for folder in sorted((results / "records").glob("*")):
        if folder.is_dir() and not folder.name.endswith(TUNING):
            frames.append(read_runs(sorted(path.parent for path in folder.rglob(RECORD)), folder.name))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else read_runs([])


def read_layers(path: Path) -> pd.DataFrame | None:
    """The prunable layers of a run, in the model's order; None if its layers.csv does not give them."""
    try:
        table = pd.read_csv(path / "layers.csv")
    except (OSError, ValueError):
        return None
    if not {"name", "sparsity"} <= set(table):
        return None
    return table[table.prunable.astype(bool)] if "prunable" in table else table


def read_history(path: Path) -> list[dict[str, Any]]:
    """The epochs of a run; empty if there is no history."""
    from pdp.runs.directory import RunDirectory

    lines = RunDirectory(path).read_history()
    # Evaluations within epochs (recipe.evaluate_every) get numbers in between: the end of an epoch has its number.
    return [line | {"epoch": line["epochs_done"] - 1} if "epochs_done" in line else line for line in lines]


def revised(row: Any) -> bool:
    """Whether the method's code has changed since the run, so that the same command would now give another result."""
    recipe = row.recipe or {}
    of_model = (row.model, row.pattern, bool(recipe.get("channels_last")))
    holding = conditions(row.least_density, row.allocation_ends, recipe.get("clip"), *of_model)
    return named(row.base_method, row.pattern, int(row.method_revision), holding) != row.base_method


def shown_method(method: str, quantize: str) -> str:
    """What rows call a method: of a quantized run not as that of the one in floats."""
    return method if quantize == "none" else f"{method}+{quantize}"


def _once(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each configuration and seed."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        first = found.setdefault((row["config_hash"], row["seed"]), row)
        if any(repr(first[key]) != repr(row[key]) for key in FIELDS):  # by their words, as NaN is no NaN's equal
            raise Refusal(
                f"{first['path']} and {row['path']} are both run {row['cell']}-{row['seed']}, with different records: "
                "move one of them elsewhere"
            )
    return list(found.values())


def _row(path: Path, study: str) -> dict[str, Any]:
    record = dataclasses.asdict(read_record(path))
    # A record older than an option was made with what is now the option's default.
    options = OPTIONS.get(record["method"])
    known = {field.name: field.default for field in dataclasses.fields(options)} if options else {}
    known.pop("name", None)
    try:
        record["method_options"] = known | record["method_options"]
        more = {"study": study, "cell": record["config_hash"][:8], "setting": cell_of(record), "path": path}
        record["target_sparsity"], record["seed"] = float(record["target_sparsity"]), int(record["seed"])
    except (TypeError, ValueError, AttributeError) as error:
        raise Refusal(f"{path}: {RECORD} cannot be read ({error}): move it away, the run is made again") from None
    method = record["method"]
    return record | more | {"method": shown_method(method, record["quantize"]), "base_method": method}
