"""For evaluate.py: the test metric, zeros and MACs of a run's hard model, or of pretrained weights without a run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from pdp.config.data_schema import data_label
from pdp.config.schema import Config
from pdp.config.source import source_digest
from pdp.config.stored import read_config
from pdp.cost import count_bytes, count_macs, count_parameters
from pdp.errors import Refusal, Stopped
from pdp.importing import set_apart
from pdp.quantize.frozen import Frozen
from pdp.runs.checkpoint import load_weights
from pdp.runs.record import SCALES, Record, read_record
from pdp.tasks import build_task
from pdp.tasks.task import Task, same_classes
from pdp.training.assembly import make_accelerator, make_model
from pdp.training.display import Display
from pdp.training.evaluation import measure
from pdp.training.failures import reported_failures
from pdp.training.lm_eval_tasks import check_lm_eval, show_lm_eval
from pdp.training.shipping import read_frozen, shipped
from pdp.wording import one_line, percent, score

_ROUNDING = 0.01  # of metric and loss: more than other processors' roundings, and other batches, change in them


def evaluate_run(path: Path, overrides: dict[str, Any], tasks: Sequence[str] = ()) -> None:
    """Loads a run's hard weights into the plain model, measures the test metric, and compares it with the record.

    `tasks` are those of lm-eval that are run on the hard model besides.
    """
    record = read_record(path)
    config = read_config(path)
    for key, value in overrides.items():
        node, _, name = key.rpartition(".")
        setattr(getattr(config, node) if node else config, name, value)
    config.recipe.accumulation = 1
    task = build_task(config)
    if record.metric_name != task.metric_name:
        raise Refusal(
            f"run={path}: its record is of {record.metric_name}, and what its config.yaml names is measured by "
            f"{task.metric_name}: restore the one that is not the run's"
        )
    check_lm_eval(task, tasks)
    config.model.pretrained = "false"
    task.recall(record.classes)
    task.follow(path, f"run={path}")
    with set_apart():
        task.open_data()
    _check_classes(path, record, task)
    if task.data_fingerprint != record.data_fingerprint:
        warnings.warn(
            f"the data is not the run's: {task.data_fingerprint}, not {record.data_fingerprint}", stacklevel=2
        )
    if record.model_source and source_digest(config.model.name) != record.model_source:
        warnings.warn(f"the source of {config.model.name} is not what it was when the run was made", stacklevel=2)
    accelerator = make_accelerator(config)
    display = Display(accelerator.is_main_process)
    model = make_model(config, task)
    load_weights(model, path / "model.safetensors")
    frozen = read_frozen(path / SCALES) if record.quantize != "none" else None
    _show_measurement(config, task, model, accelerator, display, record, frozen)
    show_lm_eval(config, task, model, tasks, display)


def _check_classes(path: Path, record: Record, task: Task) -> None:
    """Raises `Refusal` if the data has other classes than the run was trained for, so that class numbers differ."""
    theirs, ours = record.classes, list(task.class_names)
    if not same_classes(theirs, ours):
        told = "; ".join(
            f"{what} {', '.join(one_line(name) for name in names[:5])}{', ...' * (len(names) > 5)}"
            for what, names in (
                ("it lacks", [name for name in theirs if name not in ours]),
                ("it has besides", [name for name in ours if name not in theirs]),
            )
            if names
        )
        raise Refusal(
            f"run={path} was trained for {len(theirs)} classes, and this {task.data_name} has others"
            f" ({told or 'in another order'}): give data of the run's classes"
        )


def evaluate(config: Config, tasks: Sequence[str] = ()) -> None:
    """Measures pretrained weights, without a run, on the test set of the configured data."""
    task = build_task(config)
    check_lm_eval(task, tasks)
    with set_apart():
        task.open_data()
    accelerator = make_accelerator(config)
    display = Display(accelerator.is_main_process)
    display.say(f"{config.model.name} on {data_label(config.data)}. {task.data_note}")
    model = make_model(config, task)
    for note in task.notes:
        display.say(note)
    _show_measurement(config, task, model, accelerator, display, None, None)
    show_lm_eval(config, task, model, tasks, display)


def _show_measurement(
    config: Config,
    task: Task,
    model: nn.Module,
    accelerator: Accelerator,
    display: Display,
    record: Record | None,
    frozen: Frozen | None,
) -> None:
    with reported_failures(config):
        _measure_and_show(config, task, model, accelerator, display, record, frozen)


def _measure_and_show(
    config: Config,
    task: Task,
    model: nn.Module,
    accelerator: Accelerator,
    display: Display,
    record: Record | None,
    frozen: Frozen | None,
) -> None:
    loader = accelerator.prepare(task.evaluation_loader("test", config.recipe.batch_size, config.data.workers))
    model = model.to(accelerator.device)
    if config.recipe.precision != "fp32":
        model = accelerator.prepare_model(model, evaluation_mode=True)
    hard = measure(task, model, loader, accelerator)[task.metric_name] if frozen is not None else None
    with shipped(accelerator.unwrap_model(model), frozen):
        metrics = measure(task, model, loader, accelerator)
    frame = count_macs(model, task.example_input().to(accelerator.device))
    params, nonzero = count_parameters(model)
    sparsity = 1 - int(frame.nonzero.sum()) / int(frame.params.sum())
    name = task.metric_name
    rows = [(key, score(key, value) if key != "loss" else f"{value:.6f}", "") for key, value in metrics.items()]
    rows += [
        ("parameters", f"{params:,}", ""),
        ("parameters not zero", f"{nonzero:,}", ""),
        ("sparsity, all conv + linear", percent(sparsity), ""),
        ("MACs dense", f"{int(frame.macs.sum()):,}", ""),
        ("MACs sparse", f"{int(frame.sparse_macs.sum()):,}", ""),
    ]
    if hard is not None:
        rows.append((f"{name}, hard, floats", score(name, hard), ""))
    if record:
        held = [_recorded(record, key) for key in metrics]
        held += [
            f"{record.params:,}",
            f"{record.params_nonzero:,}",
            percent(record.sparsity_all),
            *("" if one is None else f"{one:,}" for one in (record.macs, record.macs_sparse)),
            *([score(name, record.hard)] if frozen is not None else []),
        ]
        rows = [(label, value, other) for (label, value, _), other in zip(rows, held, strict=True)]
    columns = ("", "measured", "record") if record else ("", "measured")
    display.table(
        f"{config.model.name} on {data_label(config.data)}, test set", columns, [row[: len(columns)] for row in rows]
    )
    display.say(f"{name} {metrics[name]!r}")
    stored = count_bytes(model)[["dense", "bitmask", "csr"]].sum() / 1e6
    display.say(
        f"convolution and linear weights: {stored.dense:.2f} MB dense; those not zero, with their indices, "
        f"{stored.bitmask:.2f} MB as a bitmask, {stored.csr:.2f} MB as CSR"
    )
    if record:
        same = _same(metrics[name], record.metric) and nonzero == record.params_nonzero
        display.say("agrees with the record" if same else f"DIFFERS from the record: {name} {record.metric!r}")
        same_data = task.data_fingerprint == record.data_fingerprint
        if nonzero != record.params_nonzero:
            counts = f"{nonzero:,} are not zero, and {record.params_nonzero:,} were"
            raise Stopped(f"these are not the record's weights: {counts}")
        if same_data and not as_recorded(metrics, record):
            raise Stopped(
                f"{name} is {metrics[name]:.4f} and not the record's {record.metric:.4f}: further than roundings on "
                "another processor lead, so these are not its weights or not its settings"
            )


def as_recorded(metrics: dict[str, float], record: Record) -> bool:
    """Whether metric or loss is the record's but for roundings.

    Roundings that turn over one prediction change the accuracy of few samples, or a correlation, by more than a
    hundredth, and a perplexity by any number; a mean loss they hardly change.
    """
    if _same(metrics[record.metric_name], record.metric):
        return True
    if abs(metrics[record.metric_name] - record.metric) <= _ROUNDING:
        return True
    key = "loss" if "loss" in record.metrics else record.metric_name
    now, then = metrics[key], record.metrics.get(key, record.metric)
    return _same(now, then) or math.isclose(now, then, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _same(one: float, other: float) -> bool:
    """Whether two numbers are equal; so are two that are none."""
    return one == other or (math.isnan(one) and math.isnan(other))


def _recorded(record: Record, key: str) -> str:
    """A metric of the record as the table shows it; empty where it is older than the metric."""
    if key not in record.metrics:
        return ""
    return score(key, record.metrics[key]) if key != "loss" else f"{record.metrics[key]:.6f}"
