"""Exports a finished run's model in forms that do not need this project: slim, 2:4, ONNX, safetensors, torch.export."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from pdp.config.schema import Config
from pdp.config.stored import read_config
from pdp.cost import count_macs, count_parameters
from pdp.errors import Refusal, Stopped
from pdp.export.compare import steps_off
from pdp.export.integers import with_integers
from pdp.export.onnx import EXACT, FLOATS, onnx_runner, operators, refuse_without_onnx
from pdp.export.onnx_weights import STORED
from pdp.export.program import save_program
from pdp.export.quantized_folder import load_saved, save_quantized
from pdp.export.semi_structured import check_nm, refuse_without_semi_structured, save_semi_structured
from pdp.export.slim_folder import write_slim
from pdp.export.transformer_folder import save_transformer
from pdp.runs.checkpoint import load_weights
from pdp.runs.record import SCALES, Record, read_record, write_json
from pdp.tasks import build_task
from pdp.tasks.task import Task
from pdp.tasks.text_task import TextTask
from pdp.tasks.text_tokenizer import load_tokenizer
from pdp.training.assembly import make_model, make_pruner
from pdp.training.export_measures import Runner, measured, runner_of
from pdp.training.exportable import Exportable, real_inputs
from pdp.training.shipping import read_frozen, save_frozen

FORMATS = ("slim", "nm", "onnx", "safetensors", "torch")


class ExportedRun(Exportable):
    """A finished run: its record, configuration, task, and hard model in evaluation mode."""

    def __init__(self, path: Path):
        self.path = path
        self.record: Record = read_record(path)
        config: Config = read_config(path)
        task = build_task(config)
        task.recall(self.record.classes)
        task.follow(path, f"run={path}")
        config.model.pretrained = "false"
        batch, note = real_inputs(task)
        model = make_model(config, task).to(memory_format=torch.contiguous_format)
        load_weights(model, path / "model.safetensors")
        # Of a quantized run the scales, without which its weights are another model's.
        frozen = read_frozen(path / SCALES) if self.record.quantize != "none" else None
        super().__init__(config, task, model.eval(), frozen, batch, note)


def export(run: ExportedRun, form: str, folder: Path, weights: str | None = None) -> list[tuple[str, str]]:
    """Writes `folder` and returns what was measured, as lines of two texts; raises `Refusal`.

    `weights` says how an ONNX file of integers stores those of 8 bits, see `save_onnx_integers`.
    """
    if form not in FORMATS:
        raise Refusal(f"format={form}: no such format; known: {', '.join(FORMATS)}")
    if weights is not None and (weights not in STORED or form != "onnx" or run.record.quantize != "int8"):
        raise Refusal(
            f"weights={weights}: {' or '.join(STORED)}, of format=onnx and runs with quantize=int8 "
            f"(this is format={form} of one with quantize={run.record.quantize})"
        )
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    # A temporary folder beside existing files, so that they are replaced by a complete export or not at all.
    begun = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        makers = {"slim": _slim, "nm": _nm, "safetensors": _safetensors, "torch": _torch}
        written, runner = makers[form](run, begun) if form in makers else _onnx(run, begun, weights or "uint8")
        plain, named = run.by_place(run.model)
        written += measured(run.model, run.frozen, plain, named, begun, runner)
        for one in sorted(begun.iterdir()):
            one.replace(folder / one.name)
        return [(label, value.replace(str(begun), str(folder))) for label, value in written]
    finally:
        shutil.rmtree(begun, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()


Written = tuple[list[tuple[str, str]], Runner | None]


def _slim(run: ExportedRun, folder: Path) -> Written:
    example = run.task.example_input()
    slimmed, off = run.verified()
    plain = slimmed.model
    smaller, named = run.by_place(plain)
    values = tuple(named.values())
    write_slim(slimmed, folder, _origin(run), _tokenizer(run.task) if slimmed.opens else None)
    if run.frozen is not None:
        save_frozen(run.frozen_of(plain), folder / SCALES)
    save_program(smaller, values, folder / "model.pt2")
    program: Any = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        again = float((program(*values) - smaller(*values)).abs().max())
    opens = (
        [("opens with", f"transformers.{type(plain).__name__}.from_pretrained('{folder}')")] if slimmed.opens else []
    )
    dense, slim_macs = (int(count_macs(one, example).macs.sum()) for one in (run.model, plain))
    return [
        ("compared on", run.inputs_note),
        ("difference to the masked model", f"{off:.2g} of the largest output"),
        ("difference of model.pt2", f"{again:.2g}"),
        ("MACs", f"{dense:,} -> {slim_macs:,} ({slim_macs / dense:.1%})"),
        ("parameters", f"{count_parameters(run.model)[0]:,} -> {count_parameters(plain)[0]:,}"),
        ("loads with", "load_slim.py (torch and safetensors), or torch.export.load('model.pt2').module()"),
        *opens,
        *([("scales", f"{SCALES}; the model itself is of floats")] if run.frozen is not None else []),
    ], runner_of(smaller)


def _origin(run: ExportedRun) -> dict[str, Any]:
    model = run.config.model
    return {
        "name": model.name,
        "library": model.library,
        "arguments": dict(model.arguments),
        "input_shape": list(run.task.example_input().shape),
        "run_id": run.record.run_id,
    }


def _nm(run: ExportedRun, folder: Path) -> Written:
    prune = run.config.prune
    n, m = getattr(prune, "n", None), getattr(prune, "m", None)
    if n is None or m is None:
        raise Refusal(f"run={run.path} was pruned with prune={prune.pattern}: format=nm is for prune=nm")
    pruner = make_pruner(run.config, run.task, run.model, steps_per_epoch=1)
    pruner.remove()
    names = {layer.name for layer in pruner.layers}
    wrong = check_nm(run.model, n, m, names)
    if wrong:
        raise Stopped(f"{len(wrong)} layers do not obey {n}:{m}, the first {wrong[0]}: not exported")
    if (n, m) != (2, 4):
        raise Refusal(
            f"every group obeys {n}:{m}, but hardware knows 2:4 alone: give format=onnx or format=safetensors"
        )
    refuse_without_semi_structured()
    return save_semi_structured(run.model, names, folder), None


def _onnx(run: ExportedRun, folder: Path, weights: str) -> Written:
    refuse_without_onnx()
    model, of = run.shipped()
    path = folder / "model.onnx"
    lines = [
        ("compared on", run.inputs_note),
        ("holds", of),
        ("parameters", f"{count_parameters(run.model)[0]:,} -> {count_parameters(model)[0]:,}"),
    ]
    off = run.write_onnx(model, path, weights)
    exact = weights == "int8"
    if run.frozen is None:
        lines.append(("difference to torch", f"{off:.2g} of the largest output"))
    else:
        lines.append(("difference to the fake-quantized model", f"{off:.2g} steps of its outputs' range over 255"))
        kinds = operators(path, exact)
        lines.append(("onnxruntime runs", ", ".join(f"{count} {kind}" for kind, count in kinds.items())))
        if "MatMulNBits" in kinds:
            lines.append(("onnxruntime rounds", f"what 4-bit weights multiply to 8 bits, without {' = '.join(FLOATS)}"))
        if exact:
            lines.append(("sessions need", f"{' = '.join(EXACT)} on x86 without VNNI, where they are wrong without it"))
    return lines, lambda named: onnx_runner(path, named, exact)


def _torch(run: ExportedRun, folder: Path) -> Written:
    model, of = run.shipped()
    most = 1.0
    if run.frozen is not None:
        frozen = run.frozen_of(model)
        expected = run.quantized_outputs(model, frozen)
        plain, named = run.by_place(with_integers(model, frozen, run.task.example_input(), onnx=False))
        most = run.steps_allowed(expected)
        of += f", weights of {frozen.bits} bits and their scales"
    else:
        plain, named = run.by_place(model)
        with torch.no_grad():
            expected = plain(*named.values())
    save_program(plain, tuple(named.values()), folder / "model.pt2")
    program: Any = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        off = steps_off(program(*named.values()), expected)
    if not off <= most:
        raise Stopped(f"model.pt2 differs from the model by {off:.2g} steps of the outputs: not exported")
    return [
        ("compared on", run.inputs_note),
        ("holds", of),
        ("difference of model.pt2", f"{off:.2g} steps of the outputs' range over 255"),
        ("loads with", "torch.export.load('model.pt2').module()"),
    ], runner_of(program)


def _tokenizer(task: Task) -> Any:
    """The tokenizer of a task on texts; without its data, from where it was named; None if it was not."""
    found = getattr(task, "tokenizer", None)
    if found is not None or not isinstance(task, TextTask):
        return found
    named = (task.data.tokenizer, "data.tokenizer") if task.data.tokenizer else (task.checkpoint, "model.pretrained")
    try:
        return load_tokenizer(*named) if named[0] else None
    except Refusal:
        return None


def _safetensors(run: ExportedRun, folder: Path) -> Written:
    model: Any = run.model
    params, nonzero = count_parameters(run.model)
    counted = ("parameters", f"{params:,}, not zero {nonzero:,}")
    if run.frozen is not None:
        save_quantized(run.model, run.frozen, folder, _origin(run))
        expected = run.quantized_outputs(run.model, run.frozen)
        plain, named = run.by_place(load_saved(run.model, folder))
        with torch.no_grad():
            off = steps_off(plain(*named.values()), expected)
        if not off <= run.steps_allowed(expected):
            raise Stopped(f"what load_quantized.py makes differs from the model by {off:.2g} steps of the outputs")
        return [
            counted,
            ("compared on", run.inputs_note),
            ("difference of what load_quantized.py makes", f"{off:.2g} steps of the outputs' range over 255"),
            ("loads with", f"load_quantized.py into the plain {run.config.model.name}"),
        ], None
    if hasattr(model, "save_pretrained"):
        return save_transformer(model, _tokenizer(run.task), run.inputs, folder), None
    save_model(run.model, str(folder / "model.safetensors"))
    write_json(folder / "model.json", _origin(run))
    return [counted, ("loads into", f"the plain {run.config.model.name}")], None
