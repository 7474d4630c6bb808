"""The closing table: a run's result beside the dense run of the same cell, and the folders of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pdp.config.command import command_of
from pdp.config.identity import dense_cell
from pdp.config.schema import Config
from pdp.distill.dense import dense_run
from pdp.errors import Refusal
from pdp.runs.record import Record, read_record
from pdp.tasks.task import Task, same_classes
from pdp.training.display import Display
from pdp.wording import one_line, percent, score

_BYTES = 4  # of a float32
_NAMES = 10  # class names in a line


def close(display: Display, config: Config, record: Record, directory: Path) -> None:
    """Prints a run's result, the result of the dense run of its cell, and the run's folder."""
    alone = (
        record.method == "dense" and record.quantize == "none"
    ) or config.start.run is not None  # the source run was shown at the start
    dense, missing = (None, "") if alone else _dense(config, record)
    show(display, record, dense, directory, missing)


def show(display: Display, record: Record, dense: Record | None, directory: Path, note: str = "") -> None:
    """Prints the table of a record, beside the dense run's if there is one, and `note` below it."""
    part = "validation set, the data has no other labelled one" if record.validation == "test" else "test set"
    quantized = "" if record.quantize == "none" else f", {record.quantize}"
    title = (
        f"{record.model} on {record.data}, {record.method}, {record.pattern}{quantized}, seed {record.seed} ({part})"
    )
    columns = ("", "this run", "dense run")[: 2 + (dense is not None)]
    display.table(title, columns, [row[: len(columns)] for row in rows(record, dense)])
    if note:
        display.say(note)
    display.say(f"run: {directory}")


def say_renamed(display: Display, record: Record, task: Task) -> None:
    """Tells the user that the classes of their data had other names when this run, found again, was made.

    Class names are not part of a data set's fingerprint, so the run is still the same.
    """
    if not same_classes(record.classes, task.class_names):
        names = ", ".join(one_line(name) for name in record.classes[:_NAMES])
        display.say(f"its classes were called {names} then; rerun=true takes the names of now")


def close_sweep(directories: Sequence[Path], cells: int) -> None:
    """Prints one table of a sweep's finished runs, with one row per configuration over its seeds."""
    from pdp.reports.sweep_table import make_tables, print_table

    print_table(make_tables(directories), f"the sweep ({len(directories)} of {cells} finished)")


def _dense(config: Config, record: Record) -> tuple[Record | None, str]:
    try:
        found = dense_run(config, record.data_fingerprint)
        if found is not None:
            return read_record(found), ""
        return None, f"not compared: there is no dense run of this cell and seed; {command_of(dense_cell(config))}"
    except Refusal:  # the run that it began with may have been moved since
        return None, ""


def rows(record: Record, dense: Record | None) -> list[tuple[str, str, str]]:
    """The rows of the table: name, this run's value, the dense run's value."""
    name = record.metric_name

    def beside(text: str) -> str:
        return text if dense is not None else ""

    quantized = record.quantize != "none"
    shipped = f"hard, {record.quantize}" if quantized else "hard"
    found = [
        (
            f"{name}, {shipped}, last epoch",
            score(name, record.metric),
            beside(score(name, dense.metric) if dense else ""),
        )
    ]
    if (bits := record.metrics.get("bits_per_byte")) is not None:
        other = dense.metrics.get("bits_per_byte") if dense else None
        found.append(("bits per byte", f"{bits:.4f}", beside("" if other is None else f"{other:.4f}")))
    if quantized:
        found.append((f"{name}, hard, floats", score(name, record.hard), ""))
    if record.method != "dense":
        if abs(record.metric_soft - record.hard) > 5e-5:
            found.append((f"{name}, soft, last epoch", score(name, record.metric_soft), ""))
        begun = _pruning_began(record)
        if begun:
            found.append((f"{name}, as pruning began ({begun})", score(name, record.metric_before_pruning), ""))
        unit = {"mac": "MACs", "channel": "channels"}.get(record.target_unit, "prunable weights")
        found.append(
            (f"asked: zeros of {unit}" if unit != "MACs" else "asked: MACs gone", percent(record.target_sparsity), "")
        )
        found.append(
            ("zeros of prunable weights", percent(record.sparsity), beside(percent(dense.sparsity) if dense else ""))
        )
        if record.target_unit == "mac" and record.macs and record.macs_sparse is not None:
            found.append(("MACs gone", percent(1 - record.macs_sparse / record.macs), beside("0.00 %")))
    found += [
        (
            "parameters not zero",
            f"{record.params_nonzero:,} of {record.params:,}",
            beside(f"{dense.params_nonzero:,}" if dense else ""),
        ),
        (
            "bytes, float32, without zeros",
            size(_BYTES * record.params_nonzero),
            beside(size(_BYTES * dense.params_nonzero) if dense else ""),
        ),
        *[
            (
                f"bytes on disk, {words}",
                size(record.bytes_on_disk[form]),
                beside(size(dense.bytes_on_disk[form]) if dense and form in dense.bytes_on_disk else ""),
            )
            for form, words in _forms(record)
        ],
        ("MACs without zeros", _macs(record), beside(f"{dense.macs_sparse:,}" if dense and dense.macs_sparse else "")),
        ("seconds of training", f"{record.train_seconds:.1f}", beside(f"{dense.train_seconds:.1f}" if dense else "")),
    ]
    return found


def _forms(record: Record) -> list[tuple[str, str]]:
    """What a quantized model takes on the disk, dense and at its least."""
    if record.quantize == "none" or not record.bytes_on_disk:
        return []
    kind = f"int{record.quantization['weight_bits']}"
    least = min((form for form in record.bytes_on_disk if form.startswith(kind)), key=record.bytes_on_disk.__getitem__)
    forms = [("fp32", "dense float32"), (kind, f"dense {kind}")]
    return forms + ([(least, least.replace("_", " "))] if least != kind else [])


def _pruning_began(record: Record) -> str:
    """When the weights before pruning were measured: the schedule's start, or "" if it is not known."""
    start, unit = record.schedule.get("start"), record.schedule.get("unit", "epoch")
    if start is None or not start:
        return ""  # pruned from the first step, so there is no model before it
    return f"after {start} {unit}{'' if start == 1 else 's'}"


def size(count: float) -> str:
    """A number of bytes in readable units."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _macs(record: Record) -> str:
    return "not counted" if record.macs is None else f"{record.macs_sparse:,} of {record.macs:,}"
