"""Makes the parts of a run from its configuration: device and processes, model, pruner."""

from __future__ import annotations

import shlex
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, set_seed
from torch import nn

from pdp.config.check_schedule import check_schedule, misfits
from pdp.config.command import command_of
from pdp.config.schema import Config, pattern_options
from pdp.environment import keep_freed_memory
from pdp.errors import Refusal
from pdp.importing import uncollected
from pdp.pruner.pruner import Pruner
from pdp.ranks import process_count
from pdp.spoken import config_words
from pdp.tasks.task import Task


def make_accelerator(config: Config) -> Accelerator:
    """Sets up device, processes and precision; the global batch is split over processes, and no batch is padded."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise Refusal("device=cuda: no CUDA device is at hand; give device=cpu or device=auto")
    # A sweep makes several in one process, each with its own device and precision.
    AcceleratorState._reset_state(reset_partial_state=process_count() == 1)
    GradientState._reset_state()
    accelerator = Accelerator(
        # By default accelerate starts no process group on a machine with only a CPU.
        cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        mixed_precision={"fp32": "no"}.get(config.recipe.precision, config.recipe.precision),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.recipe.accumulation, sync_with_dataloader=False
        ),
        # The host does not wait while a batch is copied: that would mean waiting for the step before it too.
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True),
        step_scheduler_with_optimizer=False,
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    share = config.recipe.accumulation * accelerator.num_processes
    if config.recipe.batch_size % share:
        raise Refusal(
            f"recipe.batch_size={config.recipe.batch_size} is global and must divide by recipe.accumulation x "
            f"processes = {config.recipe.accumulation} x {accelerator.num_processes}"
        )
    return accelerator


def check_device(config: Config, accelerator: Accelerator) -> None:
    """Raises `Refusal` where the device would train in another precision than asked for, or cannot decode images."""
    if getattr(config.data, "decode", "cpu") == "gpu" and accelerator.device.type != "cuda":
        raise Refusal(
            f"data.decode=gpu needs a CUDA device, and this run is on {accelerator.device.type}: give data.decode=cpu"
        )
    if config.recipe.precision == "fp16" and accelerator.device.type == "cpu":
        raise Refusal(
            "recipe.precision=fp16 has no effect on a CPU, which would train in fp32: give recipe.precision=bf16 or "
            "recipe.precision=fp32"
        )


def compiled(model: nn.Module) -> Any:
    """The model compiled by torch.compile; what earlier runs of this process have compiled is dropped.

    PyTorch keeps eight compiled forms of a module's code, whichever instance it runs in; a ninth run of a sweep would
    train without being compiled.
    """
    torch._dynamo.reset()
    return torch.compile(model)


def make_model(config: Config, task: Task) -> nn.Module:
    """The task's model; its random weights depend only on the seed."""
    set_seed(config.seed)
    with uncollected():
        model = task.build_model()
    return model.to(memory_format=torch.channels_last) if config.recipe.channels_last else model


def make_pruner(config: Config, task: Task, model: nn.Module, steps_per_epoch: int | None) -> Pruner:
    """The configured method on `model`."""
    if steps_per_epoch:
        _check_times(config, steps_per_epoch)
    if config.schedule.warmup == "auto" and task.upper_bound is None:
        raise Refusal(
            f"schedule.warmup=auto needs a metric with an upper bound, {task.metric_name} has none: give a time"
        )
    schedule: dict[str, Any] = {
        key: getattr(config.schedule, key) for key in ("name", "warmup", "ramp", "rate", "unit", "phases")
    }
    example_input = None
    if config.prune.pattern == "channel" or config.quantize.name != "none":
        example_input = task.example_input().to(next(model.parameters()).device)
    with config_words():
        return Pruner(
            model,
            config.method,
            "random" if config.prune.pattern == "none" else config.prune.pattern,
            config.sparsity,
            config.recipe.epochs,
            schedule=schedule,
            allocation=config.allocation.name,
            allocation_path=config.allocation.path,
            least_density=config.allocation.least_density,
            ends=config.allocation.ends,
            exclude=config.prune.exclude,
            own_exclude=task.exclude,
            steps_per_epoch=steps_per_epoch,
            upper_bound=task.upper_bound or 1.0,
            seed=config.seed,
            example_input=example_input,
            pattern_options=pattern_options(config.prune),
            quantize=config.quantize,
        )


def _check_times(config: Config, steps_per_epoch: int) -> None:
    """Raises `Refusal` with a command that fits, if times in optimizer steps do not fit into the run."""
    if misfits(config, steps_per_epoch):
        check_schedule(config, shlex.split(command_of(config))[2:], steps_per_epoch)


def steps_in_epoch(config: Config, task: Task) -> int:
    """The number of optimizer steps in an epoch: whole batches, or one of all samples where they are fewer.

    Raises `Refusal` where fewer would have to be accumulated: they are no whole number of micro-batches.
    """
    samples, recipe = task.sizes()["train"], config.recipe
    if samples < recipe.batch_size and recipe.accumulation > 1:
        raise Refusal(
            f"recipe.batch_size={recipe.batch_size} with recipe.accumulation={recipe.accumulation}: the training part "
            f"has {samples} samples, too few for one step: give recipe.accumulation=1, or recipe.batch_size="
            f"{samples // recipe.accumulation * recipe.accumulation or recipe.accumulation} or less"
        )
    return max(1, samples // recipe.batch_size)
