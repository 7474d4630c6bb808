"""Finds and loads the teacher that a configuration names: a run's hard weights, a file, a folder, or the hub's."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pdp.config.command import command_of
from pdp.config.distill import HUB, is_run
from pdp.config.identity import dense_cell
from pdp.config.schema import Config, DistillConfig, ModelConfig, TeacherConfig
from pdp.config.stored import read_config
from pdp.distill.dense import dense_run
from pdp.errors import Refusal
from pdp.runs.checkpoint import load_weights
from pdp.runs.record import TOKENIZER, Record, read_record
from pdp.tasks import build_task
from pdp.tasks.task import Task, same_classes
from pdp.tasks.text_task import TextTask
from pdp.wording import one_line

WEIGHTS = "model.safetensors"


@dataclass
class Teacher:
    """A model in evaluation mode that is never trained, its name, and the digest of its weights."""

    model: nn.Module
    label: str
    digest: str


def find_dense(config: Config, data_fingerprint: str | None) -> Path:
    """The folder of the finished dense run of the same cell and seed.

    Raises `Refusal` with the command that makes such a run.
    """
    found = dense_run(config, data_fingerprint)
    if found is None:
        raise Refusal(
            f"distill.teacher=null is the dense run of the same cell and seed, and {config.output_dir} has none: give "
            f"distill.teacher=<a run or weights>, or make it first: {command_of(dense_cell(config))}"
        )
    return found


def describe(config: Config) -> str:
    """Which teacher a run would have, for a dry run, which opens no data; says so if there is none yet."""
    assert isinstance(config.distill, TeacherConfig)
    try:
        path = _place(config, None)
    except Refusal as missing:
        return f"teacher: {missing}"
    return f"teacher: {_label(config, path)}" + (f" in {path}" if path else "")


def load_teacher(config: Config, task: Task) -> Teacher:
    """The configured teacher, on the CPU; the data of `task` must be open. Raises `Refusal`."""
    path = _place(config, task.data_fingerprint)
    if path is not None and is_run(path):
        model = _of_run(config, task, path)
    else:
        model = _pretrained(config, task, "true" if path is None else str(path))
    model.eval().requires_grad_(False)
    return Teacher(model, _label(config, path), weights_digest(model))


def weights_digest(model: nn.Module) -> str:
    """The first 16 hex digits of a sha256 over the names, dtypes, shapes and values of a model's state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _place(config: Config, data_fingerprint: str | None) -> Path | None:
    """The path of the teacher's weights; None if they come from the hub."""
    assert isinstance(config.distill, TeacherConfig)
    named = config.distill.teacher
    if named is None:
        return find_dense(config, data_fingerprint)
    return None if named == HUB else Path(named)


def _label(config: Config, path: Path | None) -> str:
    if path is None:
        return f"{config.model.name} of the hub"
    if not is_run(path):
        return f"weights {path.name}"
    record = read_record(path)
    return f"run {record.run_id} ({record.model}, {record.method}, {record.metric_name} {record.metric:.4f})"


def _of_run(config: Config, task: Task, path: Path) -> nn.Module:
    """A run's model, built from the run's own configuration, with its hard weights."""
    theirs = read_config(path)
    record = read_record(path)
    _check_same_data(config, task, theirs, path)
    if not same_classes(record.classes, task.class_names):
        raise Refusal(
            f"distill.teacher={path} ({theirs.model.name}) was trained for other classes than this {config.data.name} "
            f"has, {', '.join(map(one_line, record.classes[:5]))}: give a distill.teacher of the same data"
        )
    _check_tokenizer(config, task, theirs, record, path)
    if replace(theirs.model, pretrained=config.model.pretrained) == config.model:
        model = task.build_model()
    else:
        model, _ = _build(config, task, theirs.model, weights=False)
    _check_classes(model, path / WEIGHTS, record, config)
    load_weights(model, path / WEIGHTS)
    return model


def _check_same_data(config: Config, task: Task, theirs: Config, path: Path) -> None:
    def what(one: Config) -> str:
        return " ".join(str(part) for part in (one.data.name, getattr(one.data, "task", None)) if part)

    said = f"distill.teacher={path} ({theirs.model.name})"
    if theirs.model.task != config.model.task or what(theirs) != what(config):
        raise Refusal(
            f"{said} is a run on {what(theirs)}, and this is one on {what(config)}: give a distill.teacher "
            "of the same data"
        )
    its, ours = (_shapes(one.example_input()) for one in (build_task(theirs), task))
    if its != ours:
        raise Refusal(
            f"{said} takes inputs of {_words(its)}, and this run gives {_words(ours)}: give both the same, for "
            "images by data.image_size="
        )


def _check_tokenizer(config: Config, task: Task, theirs: Config, record: Record, path: Path) -> None:
    """Raises `Refusal` if the run numbers other words than the student does, however alike their configurations are."""
    if not isinstance(task, TextTask):
        return
    said = f"distill.teacher={path} ({theirs.model.name})"
    known = record.reading.get("tokenizer")
    if known is None:  # an older record
        other = build_task(theirs)
        assert isinstance(other, TextTask)
        if not other.trains_tokenizer or record.data_fingerprint == task.data_fingerprint:
            return
        other.follow(path, said)
        other.open_data()
        known = other.reading["tokenizer"]
    if known != task.reading["tokenizer"]:
        kept = path / TOKENIZER
        raise Refusal(
            f"{said} would read other tokens than the student ({config.model.name}): give both the teacher's tokenizer "
            f"by data.tokenizer={kept if kept.is_dir() else ''}"
        )


def _shapes(example: Any) -> dict[str, tuple[int, ...]]:
    values = example.items() if hasattr(example, "items") else [("input", example)]
    return {str(name): tuple(value.shape) for name, value in values if isinstance(value, Tensor)}


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join("x".join(str(size) for size in shape[1:]) for shape in shapes.values())


def _check_classes(model: nn.Module, path: Path, record: Record, config: Config) -> None:
    """Raises `Refusal` if the weights differ from the model only in their number of classes."""
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Refusal(f"distill.teacher: {path} cannot be read ({error}): give another distill.teacher") from None
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    pairs = [(stored[name], shape) for name, shape in wanted.items() if stored.get(name, shape) != shape]
    counts = {(its[0], ours[0]) for its, ours in pairs if its and ours and its[1:] == ours[1:]}
    if len(counts) == 1 and len(pairs) <= 2:
        ((its, ours),) = counts
        raise Refusal(
            f"distill.teacher={path.parent} ({record.model}) is for {its} classes, and this {config.data.name} has "
            f"{ours}: give a distill.teacher for this data"
        )


def _pretrained(config: Config, task: Task, pretrained: str) -> nn.Module:
    """The student's architecture with weights from a file, a folder or the hub; no part may start random."""
    named = HUB if pretrained == "true" else pretrained
    try:
        model, notes = _build(config, task, replace(config.model, pretrained=pretrained))
    except Refusal as refusal:
        raise Refusal(f"distill.teacher={named} cannot be the teacher: {refusal}") from None
    random = [note for note in notes if "random" in note]
    if random:
        raise Refusal(
            f"distill.teacher={named} cannot be the teacher: {random[0]}; give a distill.teacher for this data"
        )
    return model


def _build(config: Config, student: Task, model: ModelConfig, weights: bool = True) -> tuple[nn.Module, list[str]]:
    """Another model for the student's data, and notes on what was done to build it."""
    other = copy.deepcopy(config)
    # A folder provides the model's sizes and the tokenizer even if the weights come from elsewhere.
    shaped = weights or (model.library == "transformers" and Path(model.pretrained).is_dir())
    other.model, other.distill = model if shaped else replace(model, pretrained="false"), DistillConfig()
    task = build_task(other)
    task.open_data()
    if model.library == "transformers" and task.data_fingerprint != student.data_fingerprint:
        raise Refusal(
            f"the teacher ({model.name}) would read other tokens than the student ({config.model.name}): give both the "
            "teacher's tokenizer by data.tokenizer="
        )
    if not weights:
        other.model = replace(model, pretrained="false")
    before = list(task.notes)
    return task.build_model(), [note for note in task.notes if note not in before]
