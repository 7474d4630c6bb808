"""The weights that a run begins with, and notes on what of them, or of its times, will not be as one may expect."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pdp.config.schema import Config
from pdp.config.start import Start, open_start
from pdp.layers import weighted_sites
from pdp.pruner.pruner import Pruner
from pdp.runs.checkpoint import read_tensors
from pdp.schedule.shapes import WHOLE_RUN
from pdp.schedule.time import Time
from pdp.tasks.image_weights import load_weights
from pdp.tasks.task import Task
from pdp.training.assembly import make_model
from pdp.training.first_head import fit_head

_SOME = 0.01  # of a layer's weights; a trained dense layer hardly has an exact zero


def make_first_model(config: Config, task: Task) -> nn.Module:
    """The model that training begins with: the task's, with the weights of the run that start.run names, if any."""
    if config.start.run is None:
        return make_model(config, task)
    pretrained, config.model.pretrained = config.model.pretrained, "false"  # the run's weights are loaded below
    try:
        model = make_model(config, task)
    finally:
        config.model.pretrained = pretrained
    start = open_start(config.start.run, config.seed)
    classes = len(getattr(task, "labels", None) or ()) or getattr(task, "classes", 0) or 1
    state = _weights(start)
    notes = fit_head(config, task, model, start, state)
    notes += load_weights(model, str(start.path / "model.safetensors"), classes, state=state)
    task.notes += [_described(start, config), *notes]
    return model


def _weights(start: Start) -> dict[str, Tensor]:
    return read_tensors(start.path / "model.safetensors")


def _described(start: Start, config: Config) -> str:
    record = start.record
    fates = {"hold": "its zeros are held", "free": "its zeros are free", "first": "its zeros are the first mask"}
    held = fates[config.start.mask]
    return (
        f"begins with run {record.run_id} ({record.model}, {record.method}, sparsity {record.sparsity:.4f}, "
        f"{record.metric_name} {record.metric:.4f}), {held}"
    )


def start_of(config: Config) -> dict[str, Any]:
    """What the record says about the run that this one continued from."""
    if config.start.run is None:
        return {}
    record = open_start(config.start.run, config.seed).record
    return {
        "mask": config.start.mask,
        "run_id": record.run_id,
        "config_hash": record.config_hash,
        "seed": record.seed,
        "method": record.method,
        "pattern": record.pattern,
        "sparsity": record.sparsity,
        "metric": record.metric,
    }


def note_zeros(config: Config, model: nn.Module, pruner: Pruner) -> list[str]:
    """A sentence for the user if the starting weights have zeros that training will not keep."""
    if config.model.pretrained == "false" and config.start.run is None:
        return []
    held = set(pruner.prunable_weights) if pruner.method.locked else set()
    weights = {name: site.stored for name, _, site in weighted_sites(model)}
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items() if name not in held}
    pruned = {name: count for name, count in zeros.items() if count >= max(2, _SOME * weights[name].numel())}
    if not pruned:
        return []
    count, total = sum(pruned.values()), sum(weight.numel() for weight in weights.values())
    source = f"run {config.start.run}" if config.start.run else f"model.pretrained={config.model.pretrained}"
    if pruner.method.locked:
        fate = "they will not stay: their layers are not pruned here"
    elif pruner.method.prunes:
        fate = f"they will not stay as they are: method={config.method.name} chooses its own"
    else:
        fate = "they will not stay: nothing holds them"
    cure = ""
    if config.start.run is None:
        cure = "; from=<the run that pruned them>, or method=pofa method.stage=finetune, holds them"
    elif config.start.mask == "free":
        cure = "; start.mask=hold holds them"
    return [
        f"{source} has {count:,} zeros among its {total:,} convolution and linear weights ({count / total:.1%}), and "
        f"{fate}{cure}"
    ]


def note_times(config: Config, pruner: Pruner) -> list[str]:
    """A sentence for the user if a dense part was asked for that rounds to no epoch."""
    schedule, asked = pruner.schedule, config.schedule.warmup
    if schedule is None or schedule.unit != "epoch" or schedule.start or schedule.name in WHOLE_RUN or asked == "auto":
        return []
    if not schedule.moments or not Time.parse(asked, "schedule.warmup").value:
        return []
    return [
        f"schedule.warmup={asked} is less than half an epoch of {config.recipe.epochs}, so pruning begins with the "
        "first: schedule.unit=step places it exactly"
    ]
