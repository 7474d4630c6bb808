"""The whole matrix of experiments: each cell's command, published numbers, our records and its estimated cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from pdp.config.arguments import parse
from pdp.config.compose import compose_tree
from pdp.config.groups import choices
from pdp.config.sweep import read_sweep, stored_sweeps
from pdp.errors import Refusal
from pdp.patterns.options import label_of
from pdp.runs.published import near_target, published_method
from pdp.runs.record import RECORD, Record, read_record

METRICS = {"images": "top1", "text_classification": "accuracy", "language_modelling": "perplexity"}
# Published numbers of training samples, for benchmarks that give the time of a batch but not the size of the data.
SAMPLES = {"imagenet": 1_281_167, "glue-mnli": 392_702, "glue-qqp": 363_846}


@dataclass(frozen=True)
class Planned:
    """One experiment file, in the terms of the tables; `sparsity` is None where a file or the model determines it."""

    experiment: str
    task: str
    model: str
    data: str
    method: str  # as in the published numbers, where soft movement pruning is movement_soft
    pattern: str
    sparsity: float | None
    of_macs: bool  # whether the sparsity is a share of the MACs
    allocation: str
    epochs: int
    needs: tuple[str, ...]  # keys that must be given on the command line
    words: tuple[str, ...] = ()  # further arguments, from a sweep

    @property
    def command(self) -> str:
        """The command, with <...> for values that only the user knows."""
        return " ".join(
            ["python train.py", f"experiment={self.experiment}", *self.words, *(f"{key}=<...>" for key in self.needs)]
        )


def read_plan(names: Iterable[str] | None = None) -> list[Planned]:
    """Every experiment of conf/experiment, composed but not checked, so that no file it names need exist."""
    return [_planned(name) for name in (choices("experiment") if names is None else names)]


def swept(cells: Sequence[Planned]) -> list[Planned]:
    """The cells, each followed by those that conf/sweep makes of it: the same at other sparsities."""
    others: dict[str, list[float]] = {}
    for name in stored_sweeps():
        values = read_sweep(name)
        for experiment in values.get("experiment", []):
            others.setdefault(str(experiment), []).extend(float(one) for one in values.get("sparsity", []))
    return [
        one
        for cell in cells
        for one in (
            cell,
            *(
                replace(cell, sparsity=sparsity, words=(f"sparsity={sparsity:g}",))
                for sparsity in sorted(set(others.get(cell.experiment, [])))
                if sparsity != cell.sparsity
            ),
        )
    ]


def _planned(name: str) -> Planned:
    tree, _, _ = compose_tree(parse([f"experiment={name}"]))
    data, prune, method = tree.data, tree.prune, tree.method
    nm = prune.pattern == "nm"
    task = getattr(data, "task", None)
    needs = sorted(OmegaConf.missing_keys(tree))
    if tree.allocation.name == "file" and not tree.allocation.path:
        needs.append("allocation.path")
    if getattr(method, "stage", "") == "finetune" and tree.model.pretrained == "false":
        needs.append("model.pretrained")
    if data.name in ("imagenet", "image_folder", "text") or getattr(data, "source", "") == "tsv":
        needs.append("data.root")
    sparsity = 1 - prune.n / prune.m if nm else tree.sparsity
    return Planned(
        experiment=name,
        task=tree.model.task,
        model=tree.model.name,
        data=f"{data.name}-{task}" if task else data.name,
        method=published_method(method.name, getattr(method, "variant", None)),
        pattern=label_of(prune.pattern, prune),
        sparsity=None if tree.allocation.name == "file" else sparsity,
        of_macs=getattr(prune, "target", "") == "macs",
        allocation=tree.allocation.name,
        epochs=tree.recipe.epochs,
        needs=tuple(needs),
    )


def find_published(cell: Planned, published: pd.DataFrame) -> pd.DataFrame:
    """The published rows for a cell: same method, model, data and pattern, and about the same sparsity or MACs."""
    same = published[
        (published.model == cell.model)
        & (published.data == cell.data)
        & (published.metric_name == METRICS[cell.task])
        & (published.pattern == cell.pattern)
        & (published.method == cell.method)
    ]
    if cell.method == "dense":
        return same
    if cell.allocation == "file" or cell.sparsity is None:
        return same.head(0)
    dense = published[(published.model == cell.model) & (published.method == "dense")].macs.min()
    return near_target(same, cell.sparsity, cell.of_macs, dense)


def read_kept(results: Path) -> dict[str, list[Record]]:
    """Every record under results/records, by study; tuning runs are listed under their own names."""
    kept: dict[str, list[Record]] = {}
    for path in sorted((results / "records").rglob(RECORD)):
        study = path.relative_to(results / "records").parts[0]
        kept.setdefault(study, []).append(read_record(path.parent))
    return kept


def find_records(cell: Planned, records: Sequence[Record]) -> list[Record]:
    """Our runs of a cell: same model, data, method, pattern, allocation and target."""

    def matches(record: Record) -> bool:
        method = published_method(record.method, record.method_options.get("variant"))
        named = (record.model, record.data, method, record.pattern)
        if named != (cell.model, cell.data, cell.method, cell.pattern):
            return False
        if (record.allocation == "file") != (cell.allocation == "file"):
            return False
        if cell.of_macs != (record.target_unit == "mac"):
            return False
        return cell.sparsity is None or abs(record.target_sparsity - cell.sparsity) < 1e-9

    return [record for record in records if matches(record)]


def gpu_hours(cell: Planned, records: Sequence[Record], benchmarks: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """GPU hours of one run, and where its speed was measured; NaN and "not measured" if nowhere.

    The speed is a record's median step on a GPU for the same model and data, per sample; else a benchmark's on a GPU
    for the same model. Both count training steps only, and the speed of other methods is used for this one.
    """
    on_gpu = [
        one for one in records if (one.model, one.data) == (cell.model, cell.data) and not one.device.startswith("cpu")
    ]
    on_gpu.sort(key=lambda one: (one.method != cell.method, one.finished_at))
    for record in on_gpu:
        if math.isfinite(record.step_ms_median) and record.epochs:
            # Steps of another batch size: assumes the same time per sample.
            hours = record.steps / record.epochs * cell.epochs * record.step_ms_median * record.world_size / 3.6e6
            return hours, f"{record.method}'s step on {record.device}"
    for one in benchmarks:
        if one["model"] == cell.model and cell.data in SAMPLES:
            step = one["pdp_ms"] if cell.method == "pdp" else one["dense_ms"]
            hours = SAMPLES[cell.data] / one["batch"] * cell.epochs * step / 3.6e6
            return hours, f"{'PDP' if cell.method == 'pdp' else 'dense'} step on {one['device']}"
    return math.nan, "not measured"


def read_gpu_benchmarks(results: Path) -> list[dict[str, Any]]:
    """Rows of results/benchmarks/*.json measured on a GPU: model, batch, dense_ms, pdp_ms and the device's name."""
    rows = []
    for path in sorted((results / "benchmarks").glob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            device = str(values["machine"]["device"])
            found = [row | {"device": device} for row in values["results"] if {"batch", "dense_ms", "pdp_ms"} <= {*row}]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a file of another kind
        if any(word in device.lower() for word in ("nvidia", "cuda", "amd instinct")):
            rows += found
    return rows


def plan_table(
    cells: Sequence[Planned], published: pd.DataFrame, kept: dict[str, list[Record]], benchmarks: Sequence[dict]
) -> pd.DataFrame:
    """One row per experiment: cell, command, published, ours, gpu_hours (NaN: not measured) and speed_from."""
    records = [one for study, kept_runs in kept.items() if not study.endswith("_tuning") for one in kept_runs]
    everything = [one for kept_runs in kept.values() for one in kept_runs]
    rows = []
    for cell in cells:
        hours, source = gpu_hours(cell, everything, benchmarks)
        found = find_records(cell, records)
        rows.append(
            {
                "experiment": cell.experiment,
                "model": cell.model,
                "data": cell.data,
                "method": cell.method,
                "pattern": cell.pattern,
                "sparsity": math.nan if cell.sparsity is None else cell.sparsity,
                "epochs": cell.epochs,
                "command": cell.command,
                "published": "; ".join(_said(row) for row in find_published(cell, published).itertuples()),
                "ours": _means(found),
                "gpu_hours": hours,
                "speed_from": source,
            }
        )
    return pd.DataFrame(rows)


def _said(row: Any) -> str:
    value = f"{row.value:.2f}" if row.metric_name in ("perplexity", "loss") else f"{100 * row.value:.2f} %"
    at = "" if math.isnan(row.sparsity) else f" at {100 * row.sparsity:g} %"
    epochs = "" if math.isnan(row.epochs) else f" in {row.epochs:g} epochs"
    mark = {"yes": "verified", "no": "unverified"}.get(row.verified, row.verified)
    return f"{row.label} {value}{at}{epochs} [{mark}: {row.source}]"


def _means(records: Sequence[Record]) -> str:
    """One mean per configuration, because runs with different settings are not one cell."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.config_hash, []).append(record)
    words = []
    for runs in found.values():
        mean = sum(one.metric for one in runs) / len(runs)
        value = f"{mean:.2f}" if runs[0].metric_name in ("perplexity", "loss") else f"{100 * mean:.2f} %"
        words.append(f"{value} ({len(runs)} run{'s' if len(runs) > 1 else ''})")
    return "; ".join(words)


def find_names(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that contain one of the words, or all without words; raises `Refusal` for a word that none contains."""
    for word in words:
        if not any(word in name for name in names):
            raise Refusal(f"{word}: no experiment's name holds this; see conf/experiment, or give no word for all")
    return [name for name in names if not words or any(word in name for word in words)]
