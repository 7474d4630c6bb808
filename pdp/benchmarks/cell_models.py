"""The model that a study's cell ships, without its training: pruned at once, quantized, with weights of chance.

A forward takes as long whatever the weights are but for their zeros, so time and bytes of a file need no trained ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pdp.config.arguments import parse
from pdp.config.check_prune import implied_sparsity
from pdp.config.compose import compose, compose_tree
from pdp.config.data_schema import data_label
from pdp.config.schema import Config, ScheduleConfig, pattern_options
from pdp.errors import Refusal
from pdp.patterns.options import label_of
from pdp.reports.runs import shown_method
from pdp.reports.sheet import target
from pdp.tasks import build_task
from pdp.tasks.task import Batch, Task
from pdp.training.assembly import make_model, make_pruner
from pdp.training.exportable import Exportable, real_inputs

# What says how a run trains, and with which zeros and weights it begins: nothing of it is in the shape of what ships.
_OF_TRAINING = ("from", "start", "schedule", "distill")


@dataclass(frozen=True)
class CellModel:
    """A cell as the tables name it, and the configuration that its model is built from."""

    model: str
    data: str
    method: str  # with its quantization: pdp+int8
    pattern: str
    target_sparsity: float | None  # None where a file of budgets decides it, until the model is built
    config: Config

    @property
    def label(self) -> str:
        """The cell in one line, without its model and data."""
        share = "" if self.target_sparsity is None else f" {target(self.target_sparsity)}"
        return self.method if self.pattern == "none" else f"{self.method}, {self.pattern}{share}"

    @property
    def built_as(self) -> str:
        """What decides the model: cells in which it is the same are one."""
        config = self.config
        parts = (config.model, config.data, config.prune, config.allocation, config.sparsity, config.quantize)
        return repr((self.label, *parts))


def cell_of(words: Sequence[str]) -> CellModel:
    """The cell of these arguments of train.py; raises `Refusal` where they are wrong.

    Whatever the method, the zeros are where a single cut puts them, with the method's own allocation.
    """
    keys = {word.partition("=")[0] for word in words}
    if {"from", "start.run"} & keys and (missing := {"model", "data", "prune"} - keys):
        names = " and ".join(f"{one}=" for one in sorted(missing))
        raise Refusal(
            f"{' '.join(words)}: the run that this cell goes on from is not read here: give {names} in the study"
        )
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] not in _OF_TRAINING]
    tree, _, _ = compose_tree(parse(kept))
    method = str(tree.method.name)
    if method != "dense":
        kept = [word for word in kept if word.partition("=")[0].partition(".")[0] != "method"]
        kept.append("method=oneshot")
    config = compose(kept)
    dense = config.method.name == "dense"
    config.allocation.name = tree.allocation.name
    config.recipe.epochs, config.recipe.adapter = 1, "none"
    config.schedule = ScheduleConfig(name="linear", warmup="0ep", ramp="1ep", unit="epoch")
    if config.quantize.name != "none":
        options: Any = config.quantize
        options.start, options.ranges = "0", "observed"
    pattern = "none" if dense else label_of(config.prune.pattern, pattern_options(config.prune))
    sparsity = 0.0 if dense else config.sparsity if config.sparsity is not None else implied_sparsity(config)
    shown = shown_method("dense" if dense else method, config.quantize.name)
    return CellModel(config.model.name, data_label(config.data), shown, pattern, sparsity, config)


def cells_of(commands: Iterable[Sequence[str]]) -> list[CellModel]:
    """The cells of several commands' arguments, each that builds another model once."""
    found: dict[str, CellModel] = {}
    for words in commands:
        cell = cell_of(words)
        found.setdefault(cell.built_as, cell)
    return list(found.values())


def open_task(cell: CellModel, size: int) -> tuple[Task, Batch, str]:
    """The task of a cell, `size` inputs and what they are; its models then have weights of chance."""
    task = build_task(cell.config)
    cell.config.model.pretrained = "false"
    return task, *real_inputs(task, size)


def build(cell: CellModel, task: Task, batch: Batch, note: str) -> tuple[Exportable, float]:
    """The cell's hard model with its scales, and the share of its units that is pruned.

    Raises `Refusal` where its pattern or quantization does not fit the model.
    """
    cell.config.model.pretrained = "false"
    model = make_model(cell.config, task).to(memory_format=torch.contiguous_format)
    made = Exportable(cell.config, task, model, None, batch, note, trained=False)
    pruner = make_pruner(cell.config, task, model, steps_per_epoch=None)
    pruner.at_once()
    plain, named = made.by_place(model)
    if pruner.quantizer is not None:
        pruner.quantizer.start_epoch(0)
        with _norms_of_one_batch(model):
            plain.train()(*named.values())
        pruner.quantizer.step(0, 0)
    pruner.finalize()
    model.eval()
    made.frozen = pruner.frozen
    return made, pruner.share if pruner.method.prunes else 0.0


@contextmanager
def _norms_of_one_batch(model: nn.Module) -> Iterator[None]:
    """Inside, a forward in training leaves its own statistics: ranges observed in it then hold in evaluation too."""
    norms = [(one, one.momentum) for one in model.modules() if isinstance(one, _BatchNorm)]
    for norm, _ in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum


def sample_of(batch: Batch) -> Batch:
    """One sample of a batch: the first, or the text of the middle length without its padding."""
    if "attention_mask" not in batch:
        return {name: values[:1].contiguous() for name, values in batch.items()}
    lengths = batch["attention_mask"].sum(1)
    middle = int(lengths.argsort()[len(lengths) // 2])
    length, width = int(lengths[middle]), batch["input_ids"].shape[1]
    one = {name: values[middle : middle + 1] for name, values in batch.items()}
    return {
        name: (values[:, :length] if values.dim() > 1 and values.shape[1] == width else values).contiguous()
        for name, values in one.items()
    }
