"""Times what the cells of a study ship: their ONNX files in onnxruntime and OpenVINO, every one in its turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pdp.benchmarks.cell_models import CellModel, build, open_task, sample_of
from pdp.benchmarks.step_timing import quartiles
from pdp.errors import Refusal
from pdp.export.compare import steps_off
from pdp.export.latency import rounds_of
from pdp.export.onnx import onnx_runner
from pdp.export.openvino_runtime import has_openvino, openvino_runner
from pdp.tasks.task import Batch
from pdp.wording import one_line

ENGINES = ("onnxruntime", "OpenVINO", "OpenVINO, sparse weights")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class File:
    """A cell's exported file: where it is, its share of zeros, how far it is from torch, and its inputs by batch."""

    cell: CellModel
    path: Path
    sparsity: float
    off: float
    inputs: dict[int, dict[str, Tensor]]
    note: str  # what the inputs are


def timed(cells: Sequence[CellModel], batches: Sequence[int], rounds: int, tell: Tell) -> list[dict[str, Any]]:
    """A row for each cell, engine and batch; the cells of one model and its data are timed in turn.

    `latency_ms` and `quartiles_ms` are milliseconds of one sample; `speedup` is the median over rounds of the dense
    float32 model's time in the same engine over this one's, None in a study without that model. `difference` is
    onnxruntime's from torch as exports say it, and OpenVINO's from onnxruntime in steps: the outputs' range over 255.
    Raises `Stopped` where a file in onnxruntime does not compute what torch does, `Refusal` for a batch larger than the
    test set.
    """
    rows: list[dict[str, Any]] = []
    for group in dict.fromkeys((cell.model, cell.data) for cell in cells):
        mine = [cell for cell in cells if (cell.model, cell.data) == group]
        with tempfile.TemporaryDirectory() as folder:
            files = written(mine, batches, Path(folder), tell)
            for batch in batches:
                rows += _in_turn(files, batch, rounds, tell)
    return rows


def written(cells: Sequence[CellModel], batches: Sequence[int], folder: Path, tell: Tell) -> list[File]:
    """The cells' ONNX files, each checked against torch."""
    files = []
    opened: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        key = repr((cell.config.model, cell.config.data))
        if key not in opened:
            opened[key] = open_task(cell, max(16, *batches))
            tell(f"{cell.model} on {cell.data}: inputs are {opened[key][2]}")
            count = len(next(iter(opened[key][1].values())))
            if count < max(batches):
                raise Refusal(f"--batch {max(batches)}: the test set has {count} samples: give no more")
        task, batch, note = opened[key]
        made, share = build(cell, task, batch, note)
        model, of = made.shipped()
        path = folder / f"{number}.onnx"
        off = made.write_onnx(model, path, weights="int8")
        unit = "of the largest output" if made.frozen is None else "steps"
        tell(f"{cell.label}: {of}, onnxruntime {off:.2g} {unit} from torch, {path.stat().st_size:,} bytes")
        inputs = {size: made.by_place(model, _of_size(batch, size))[1] for size in batches}
        files.append(File(cell, path, share, off, inputs, note.partition(",")[0]))
    return files


def _of_size(batch: Batch, size: int) -> Batch:
    return sample_of(batch) if size == 1 else {name: values[:size].contiguous() for name, values in batch.items()}


def _in_turn(files: Sequence[File], batch: int, rounds: int, tell: Tell) -> list[dict[str, Any]]:
    calls: dict[tuple[int, str], Callable[[], Any]] = {}
    off: dict[tuple[int, str], float] = {}
    for number, file in enumerate(files):
        named = file.inputs[batch]
        calls[number, ENGINES[0]] = onnx_runner(file.path, named, exact=True)
        expected = torch.as_tensor(calls[number, ENGINES[0]]()[0])
        if not has_openvino():
            continue
        sparse = file.cell.config.quantize.name == "int8" and file.sparsity > 0
        for engine, share in ((ENGINES[1], None), *([(ENGINES[2], file.sparsity)] if sparse else [])):
            try:
                call = openvino_runner(file.path, named, share)
                off[number, engine] = steps_off(torch.as_tensor(call()[0]), expected)
            except RuntimeError as error:  # an operator that it does not know
                tell(f"{file.cell.label}: left out of {engine}, which says {one_line(error)[:200]}")
            else:
                calls[number, engine] = call
    tell(f"timing {len(calls)} files and engines in turn, batch {batch}")
    times = rounds_of({f"{number} {engine}": call for (number, engine), call in calls.items()}, rounds)
    dense = next((number for number, file in enumerate(files) if file.cell.method == "dense"), None)
    rows = []
    for number, engine in calls:
        file, spent = files[number], [one / batch for one in times[f"{number} {engine}"]]
        baseline = times.get(f"{dense} {engine.partition(',')[0]}")
        fast = [first / batch / second for first, second in zip(baseline, spent, strict=True)] if baseline else None
        cell, inputs = file.cell, next(iter(file.inputs[batch].values()))
        share = cell.target_sparsity if cell.target_sparsity is not None else file.sparsity
        rows.append(
            {
                "model": cell.model,
                "data": cell.data,
                "label": cell.label,
                "method": cell.method,
                "pattern": cell.pattern,
                "target_sparsity": share,
                "engine": engine,
                "batch": batch,
                "input": list(inputs.shape[1:]),
                "inputs": file.note,
                "latency_ms": median(spent),
                "quartiles_ms": quartiles(spent),
                "speedup": median(fast) if fast else None,
                "bytes": file.path.stat().st_size,
                "difference": file.off if engine == ENGINES[0] else off[number, engine],
            }
        )
    return rows
