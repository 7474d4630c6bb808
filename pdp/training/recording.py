"""The record of a finished run, and its table of layers."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import nn

from pdp.config.data_schema import data_label
from pdp.config.identity import config_hash, method_revision, pretrained_label
from pdp.config.schema import Config
from pdp.config.source import source_digest
from pdp.cost import count_macs, count_parameters, uncounted
from pdp.environment import device_name, git_commit, peak_memory_mb, versions
from pdp.pruner.pruner import Pruner
from pdp.runs.record import Record
from pdp.tasks.task import Task
from pdp.training.shipping import quantization_of
from pdp.training.start import start_of
from pdp.training.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd


def layer_table(model: nn.Module, pruner: Pruner | None, example_input: Any) -> pd.DataFrame:
    """The table layers.csv, a row per convolution and linear layer.

    The columns are name, type, weights, nonzero, sparsity, macs, sparse_macs, prunable, share. share is the fraction of
    units removed, given for the layer that names them, such as the first of several coupled ones. Without an input the
    columns of MACs are empty.
    """
    frame = count_macs(model, example_input) if example_input is not None else uncounted(model)
    attributes = dict(frame.attrs)
    frame = frame.rename(columns={"params": "weights"})
    frame.insert(4, "sparsity", 1 - frame.nonzero / frame.weights)
    prunable = set(pruner.prunable_weights) if pruner else set()
    frame["prunable"] = [name in prunable for name in frame.name]
    shares = {layer.name: layer.pruned / layer.units for layer in pruner.layers} if pruner else {}
    frame["share"] = [shares.get(name) for name in frame.name]
    frame.attrs |= attributes
    return frame


def _total(counts: pd.Series) -> int | None:
    return None if counts.isna().any() else int(counts.sum())


def _all_experts(frame: pd.DataFrame) -> int | None:
    total = frame.attrs["macs_all_experts"]
    return None if total == _total(frame.macs) else total


def make_record(config: Config, task: Task, trainer: Trainer, frame: pd.DataFrame, metrics: dict[str, float]) -> Record:
    """The record of a finished run, without the metrics that are measured elsewhere."""
    pruner, accelerator = trainer.pruner, trainer.accelerator
    params, nonzero = count_parameters(trainer.model)
    weights = pruner.prunable_weights.values()
    prunable = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    prunes = pruner.method.prunes
    extras = sum(one.numel() for group in pruner.extra_groups() for one in group["params"])
    extras += sum(one.numel() for one in pruner.adapter_parameters)
    return Record(
        run_id=f"{config_hash(config, task.data_fingerprint)[:8]}-{config.seed}",
        status="finished",
        model=config.model.name,
        pretrained=pretrained_label(config),
        data=data_label(config.data),
        data_fingerprint=task.data_fingerprint,
        task=config.model.task,
        recipe=dict(vars(config.recipe)),
        schedule=dict(vars(config.schedule)) | {"start": pruner.start} if prunes else {},
        metric_name=task.metric_name,
        metric=metrics[task.metric_name],
        metrics=metrics,
        metric_soft=math.nan,
        metric_before_pruning=math.nan,
        metric_best=math.nan,
        epoch_best=int(trainer.best["epoch"]) if trainer.best else max(0, config.recipe.epochs - 1),
        method=config.method.name,
        pattern=pruner.pattern.label if prunes else "none",
        allocation=pruner.allocation if prunes else "none",
        target_unit=pruner.pattern.target_unit,
        target_sparsity=(config.sparsity if config.sparsity is not None else pruner.share) if prunes else 0.0,
        sparsity=zeros / prunable,
        sparsity_all=1 - int(frame.nonzero.sum()) / int(frame.weights.sum()),
        params=params,
        params_nonzero=nonzero,
        extra_parameters=extras,
        macs=_total(frame.macs),
        macs_sparse=_total(frame.sparse_macs),
        macs_attention=frame.attrs["macs_attention"],
        macs_all_experts=_all_experts(frame),
        input_shape=list(task.example_input().shape),
        epochs=config.recipe.epochs,
        seed=config.seed,
        steps=trainer.step,
        train_seconds=trainer.seconds,
        step_ms_median=median(trainer.step_ms) if trainer.step_ms else math.nan,
        mask_ms_median=median(trainer.mask_ms) if trainer.mask_ms else math.nan,
        peak_memory_mb=peak_memory_mb(accelerator.device),
        device=device_name(accelerator.device),
        world_size=accelerator.num_processes,
        config_hash=config_hash(config, task.data_fingerprint),
        git_commit=git_commit(),
        versions=versions(),
        finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        method_revision=method_revision(config),
        least_density=config.allocation.least_density if prunes else 0.0,
        allocation_ends=config.allocation.ends if prunes else "pruned",
        ran_under=trainer.ran_under,
        method_options={key: value for key, value in vars(config.method).items() if key != "name"},
        distillation=trainer.objective.record(),
        validation="test" if task.test_is_validation else "held out",
        step_best=int(trainer.best["step"]) if trainer.best and "step" in trainer.best else None,
        prunable_share=round(pruner.prunable_share, 6) if prunes else None,
        skipped_steps=trainer.losses.skipped,
        classes=list(task.class_names),
        model_source=source_digest(config.model.name) if config.model.library == "import" else "",
        start=start_of(config),
        reading=task.reading,
        quantize=config.quantize.name,
        quantization=quantization_of(pruner, trainer.model),
        notes=[
            *(task.data_note, *task.notes, *trainer.said),
            *(f"unreadable: {name}" for name in sorted(task.unreadable)),
        ],
    )
