"""What follows the last step of a run: the hard model, the test set read once, and the files that the run leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pdp.config.schema import BlockPruneConfig, Config
from pdp.pruner.pruner import Pruner
from pdp.quantize.bias import shipped_biases
from pdp.quantize.sizes import bytes_on_disk
from pdp.runs.directory import RunDirectory
from pdp.runs.record import write_record
from pdp.tasks.task import Task
from pdp.training.averaged import averaged
from pdp.training.closing import close
from pdp.training.display import Display
from pdp.training.hardening import note_gap
from pdp.training.pruning_notes import keep_histograms
from pdp.training.recalibration import recalibrate
from pdp.training.recording import layer_table, make_record
from pdp.training.sharding import load_model_weights, made_whole, save_model_weights
from pdp.training.shipping import read_frozen, save_frozen, shipped
from pdp.training.together import decided_by_main, wait_until_visible
from pdp.training.trainer import Trainer
from pdp.wording import of_unit, percent


def finish(config: Config, task: Task, trainer: Trainer, directory: RunDirectory, display: Display) -> None:
    """Makes the model hard, evaluates the test set once, and writes weights, tables and the record."""
    accelerator, pruner, model = trainer.accelerator, trainer.pruner, trainer.model
    name = task.metric_name
    batch = task.evaluation_batch(config.recipe.batch_size, accelerator.device.type)
    test = accelerator.prepare(task.evaluation_loader("test", batch, config.data.workers))
    notes: list[str] = []
    if trainer.takes_part:
        attempt(notes, "the histograms of the end", lambda: keep_histograms(trainer, "end"))
    soft: dict[str, float] = {}
    if trainer.total:  # without training it is hard already
        with averaged(trainer, soft=True), pruner.unquantized():
            soft = trainer.measure(test)
    if trainer.average:
        model.load_state_dict(trainer.average.module.state_dict())
        trainer.average = None
    if trainer.takes_part and pruner.method.prunes:
        gap = directory.path / "soft_gap.csv"
        frame = attempt(notes, gap.name, pruner.soft_gap)
        if accelerator.is_main_process and frame is not None:
            attempt(notes, gap.name, lambda: frame.to_csv(gap, index=False))
    ended_at = pruner.fraction if trainer.total and pruner.method.prunes else 1.0
    pruner.finalize()
    with shipped(model, pruner.frozen):
        notes += recalibrated(config, task, trainer)
    if pruner.quantizer is not None and config.recipe.recalibrate_bn:
        pruner.frozen = pruner.quantizer.freeze(model)  # the norms that biases hold have changed
    notes += rounded(config, pruner)
    # Every process evaluates the weights on the disk, which the main process has written.
    if trainer.takes_part:
        save_model_weights(model, directory.weights, accelerator.is_main_process)
    if accelerator.is_main_process and pruner.frozen is not None:
        save_frozen(pruner.frozen, directory.scales)
    hard = trainer.measure(test)
    metrics = hard
    if pruner.frozen is not None:
        with shipped(model, pruner.frozen):
            metrics = trainer.measure(test)
    saved = {"before": directory.before_pruning, "best": directory.best}
    there = decided_by_main(accelerator, lambda: [key for key, path in saved.items() if path.is_file()])
    elsewhere = {}
    for key in there:
        load_written(model, saved[key])
        scales = None
        if key == "best" and pruner.frozen is not None:
            wait_until_visible(directory.best_scales)
            scales = read_frozen(directory.best_scales)
        if key == "best" and config.recipe.recalibrate_bn:  # as what is shipped was
            with shipped(model, scales):
                trainer.sampler.set_epoch(config.recipe.epochs, 0)
                recalibrate(task, model, trainer.loader, config.recipe.recalibrate_bn)
            if scales is not None:
                norms = pruner.quantizer.norms  # type: ignore[union-attr]
                biases = shipped_biases(model, norms, scales.weights, scales.activations)
                scales = replace(scales, biases=biases)
        with shipped(model, scales):
            elsewhere[key] = trainer.measure(test)[name]
    load_written(model, directory.weights)
    if not accelerator.is_main_process:
        return
    if trainer.sharded:
        trainer.model = model = made_whole(config, task, pruner, model, directory.weights)
    example = task.example_input().to(next(model.parameters()).device)
    frame = attempt(notes, "multiply-adds", lambda: layer_table(model, pruner, example))
    if frame is None:
        frame = layer_table(model, pruner, None)
    if frame.attrs["uncounted"]:
        notes.append(f"multiply-adds without {', '.join(frame.attrs['uncounted'])}, which cannot be counted")
    frame.to_csv(directory.layers, index=False)
    np.savez_compressed(
        directory.distributions,
        layers=np.array([layer.name for layer in pruner.layers]),
        **trainer.histograms,  # type: ignore[arg-type]
    )
    record = make_record(config, task, trainer, frame, metrics)
    record.notes += notes
    record.metric_hard = hard[name] if pruner.frozen is not None else None
    record.metric_soft = soft.get(name, hard[name]) if pruner.method.prunes else hard[name]
    record.metric_before_pruning = elsewhere.get("before", hard[name])
    record.bytes_on_disk = attempt(record.notes, "bytes on disk", lambda: bytes_on_disk(model, pruner.frozen)) or {}
    record.metric_best = elsewhere.get("best", metrics[name])
    note_gap(record, config, task.higher_is_better, display.say, ended_at)
    directory.check_held()
    write_record(record, directory.path)
    _draw(directory, display)
    trainer.tracker.finish(record)
    aside = (directory.before_pruning, directory.best, directory.best_scales)
    for path in (*aside, *directory.checkpoints.glob("teacher_logits-*")):
        path.unlink(missing_ok=True)
    if task.unreadable:
        display.say(f"left out as unreadable: {len(task.unreadable)} images, the first {min(task.unreadable)}")
    close(display, config, record, directory.path)


def _draw(directory: RunDirectory, display: Display) -> None:
    """Draws the run's two pictures; a failure here does not make the run incomplete."""
    from pdp.reports.run_figures import draw_run  # imports matplotlib, which nothing before needs

    try:
        draw_run(directory.path)
    except Exception as error:  # a drawing library's exceptions have no common class
        display.say(f"curves.png and layers.png could not be drawn: {' '.join(str(error).split())[:200]}")


def load_written(model: nn.Module, path: Path) -> None:
    """Loads weights that the main process has written, as soon as they are visible on this machine."""
    wait_until_visible(path)
    load_model_weights(model, path)


def recalibrated(config: Config, task: Task, trainer: Trainer) -> list[str]:
    """For recipe.recalibrate_bn: new BatchNorm statistics for the hard model, and a note on their effect."""
    if not config.recipe.recalibrate_bn:
        return []
    name = task.metric_name
    before = trainer.measure(trainer.validation)[name]
    trainer.sampler.set_epoch(config.recipe.epochs, 0)
    batches = recalibrate(task, trainer.model, trainer.loader, config.recipe.recalibrate_bn)
    after = trainer.measure(trainer.validation)[name]
    note = f"BatchNorm recalibrated on {batches} batches: validation {name} {before!r} -> {after!r}"
    trainer.display.say(note)
    return [note]


def rounded(config: Config, pruner: Pruner) -> list[str]:
    """A note on how far prune.round_to, or whole blocks, moved the pruned share from the requested one."""
    if not pruner.method.prunes or pruner.target is None:
        return []
    unit, share = of_unit(pruner.pattern.target_unit), pruner.pattern.reached(pruner.layers)
    gone = f"{percent(share)}{unit} gone, {percent(pruner.target)} asked"
    if (round_to := getattr(config.prune, "round_to", 1)) != 1:
        return [f"prune.round_to={round_to}: {gone}"]
    if isinstance(config.prune, BlockPruneConfig) and percent(share) != percent(pruner.target):
        return [f"prune.block=[{','.join(map(str, config.prune.block))}]: {gone}, as near as whole blocks come"]
    return []


def attempt(notes: list[str], what: str, compute: Callable[[], Any]) -> Any:
    """The result of `compute`; None and a note if it fails, because a trained model must not be lost for it."""
    try:
        return compute()
    except Exception as error:  # any failure, because it comes after training
        notes.append(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return None
