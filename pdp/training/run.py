"""One run from its configuration to its record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from accelerate import Accelerator
from torch import nn

from pdp.config.identity import config_hash, method_revision, pretrained_label, run_directory
from pdp.config.schema import Config, data_label
from pdp.config.source import source_digest
from pdp.config.stored import to_yaml
from pdp.cost import count_macs, count_parameters, uncounted
from pdp.distill.distillation import make_objective
from pdp.environment import device_name, git_commit, peak_memory_mb, versions
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.pruner.pruner import Pruner
from pdp.quantize.sizes import bytes_on_disk
from pdp.ranks import OWN_PROCESS
from pdp.runs.checkpoint import load_weights, save_weights
from pdp.runs.directory import RunDirectory
from pdp.runs.record import RECORD, Record, read_record, write_record
from pdp.tasks import build_task
from pdp.tasks.task import Task
from pdp.tracking.making import make_tracker
from pdp.training.assembly import make_accelerator, make_pruner, steps_in_epoch
from pdp.training.closing import close, say_renamed
from pdp.training.display import Display
from pdp.training.failures import reported_failures
from pdp.training.hardening import note_gap
from pdp.training.preview import preview
from pdp.training.recalibration import recalibrate
from pdp.training.shipping import quantization_of, read_frozen, said_of, save_frozen, shipped
from pdp.training.signals import StopSignals
from pdp.training.start import make_first_model, note_zeros, start_of
from pdp.training.together import decided_by_main, wait_until_visible
from pdp.training.trainer import Trainer
from pdp.wording import percent


def train(config: Config, shown: bool = True) -> Record | None:
    """Trains, prunes, measures and records one run, and returns its record; None of a dry run.

    `shown` says what it did and where it lies.
    """
    task = build_task(config)
    if config.dry_run:
        preview(config, task)
        return None
    with StopSignals(OWN_PROCESS.get()) as signals, reported_failures(config):
        task.open_data()
        directory = RunDirectory(Path(run_directory(config, task.data_fingerprint)))
        accelerator = make_accelerator(config)
        display = Display(shown and accelerator.is_main_process)
        display.say(f"{config.model.name} on {data_label(config.data)}. {task.data_note}")
        if not config.rerun and decided_by_main(accelerator, lambda: directory.finished):
            wait_until_visible(directory.path / RECORD)
            record = read_record(directory.path)
            if accelerator.is_main_process:
                close(display, config, record, directory.path)
                say_renamed(display, record, task)
                display.say("this run is finished; rerun=true moves it aside and starts over")
            return record
        # Whatever can be refused is refused before anything is written.
        model = make_first_model(config, task).to(accelerator.device)
        objective = make_objective(config, task, model, accelerator)
        steps = steps_in_epoch(config, task)
        pruner = make_pruner(config, task, model, steps)
        task.notes += note_zeros(config, model, pruner)
        if pruner.quantizer is not None:
            display.say(said_of(pruner.quantizer))
        if pruner.method.prunes:
            share = percent(pruner.prunable_share)
            display.say(f"{share} of all weights are prunable; dry_run=true says what stays dense")
        run_id = f"{config_hash(config, task.data_fingerprint)[:8]}-{config.seed}"
        tracker = make_tracker(config, directory.path, run_id, display.say, accelerator.is_main_process)
        with claimed(directory, config, accelerator, display), tracker:
            for note in task.notes:
                display.say(note)
            trainer = Trainer(
                config, task, model, pruner, accelerator, directory, display, steps, tracker, objective, signals
            )
            if trainer.resume():
                display.say(f"going on from epoch {trainer.epoch + 1}, step {trainer.step}")
            elif accelerator.is_main_process:
                directory.cut_history(-1, -1)
            objective.prepare(directory, display.say)
            tracker.start(trainer.step)
            trainer.fit()
            finish(config, task, trainer, directory, display)
            accelerator.wait_for_everyone()  # the main process has written the record
            wait_until_visible(directory.path / RECORD)
            return read_record(directory.path)


@contextmanager
def claimed(directory: RunDirectory, config: Config, accelerator: Accelerator, display: Display) -> Iterator[None]:
    """Holds the run's directory, on the main process, while the run goes on."""

    def claim() -> None:
        if config.rerun and directory.path.exists():
            directory.hold()
            directory.release()
            display.say(f"moved the earlier run to {directory.move_aside()}")
        if directory.begun and not config.resume:
            raise Refusal(f"{directory.path} holds an unfinished run and resume=false: give resume=true or rerun=true")
        directory.hold()
        try:
            beside = directory.config.with_name(f".{directory.config.name}")
            beside.write_text(to_yaml(config), encoding="utf-8")
            beside.replace(directory.config)
        except BaseException:
            directory.release()
            raise

    decided_by_main(accelerator, claim)  # a run that another process holds is left as it is
    try:
        yield
    except BaseException as error:
        if accelerator.is_main_process:
            _note_ending(directory, error)
        raise
    finally:
        directory.release()


def _note_ending(directory: RunDirectory, error: BaseException) -> None:
    """Leaves word of how the run ended, so that nobody takes it for running; of a refused start, nothing."""
    kinds = {SavedForRestart: "saved", Stopped: "stopped", Refusal: "refused", KeyboardInterrupt: "interrupted"}
    how = next((word for kind, word in kinds.items() if isinstance(error, kind)), "failed")
    with suppress(OSError):  # a full disk, which is what it ended of
        if how == "refused":
            directory.discard_if_nothing_begun()
        if directory.path.is_dir():
            directory.note_ending(how, " ".join(str(error).split())[:300])


def finish(config: Config, task: Task, trainer: Trainer, directory: RunDirectory, display: Display) -> None:
    """Hardens the model, reads the test set once, and leaves weights, tables and the record."""
    accelerator, pruner, model = trainer.accelerator, trainer.pruner, trainer.model
    name = task.metric_name
    batch = task.evaluation_batch(config.recipe.batch_size, accelerator.device.type)
    test = accelerator.prepare(task.evaluation_loader("test", batch, config.data.workers))
    notes: list[str] = []
    if accelerator.is_main_process:
        attempt(notes, "the histograms of the end", lambda: trainer.keep_histograms("end"))
    with pruner.unquantized():
        soft = trainer.measure(test)
    if trainer.average:
        model.load_state_dict(trainer.average.module.state_dict())
        trainer.average = None
    if accelerator.is_main_process and pruner.method.prunes:
        gap = directory.path / "soft_gap.csv"
        attempt(notes, gap.name, lambda: pruner.soft_gap().to_csv(gap, index=False))
    pruner.finalize()
    with shipped(model, pruner.frozen):
        notes += recalibrated(config, task, trainer)
    if pruner.quantizer is not None and config.recipe.recalibrate_bn:
        pruner.frozen = pruner.quantizer.freeze(model)
    # Every process measures what lies on the disk, which the main process wrote.
    if accelerator.is_main_process:
        save_weights(model, directory.weights)
        if pruner.frozen is not None:
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
        with shipped(model, scales):
            elsewhere[key] = trainer.measure(test)[name]
    load_written(model, directory.weights)
    if not accelerator.is_main_process:
        return
    example = task.example_input().to(accelerator.device)
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
    record.metric_soft = soft[name] if pruner.method.prunes else hard[name]
    record.metric_before_pruning = elsewhere.get("before", hard[name])
    record.bytes_on_disk = attempt(record.notes, "bytes on disk", lambda: bytes_on_disk(model, pruner.frozen)) or {}
    record.metric_best = elsewhere.get("best", metrics[name])
    note_gap(record, config, task.higher_is_better, display.say)
    directory.check_held()
    write_record(record, directory.path)
    _draw(directory, display)
    trainer.tracker.finish(record)
    for path in (
        directory.before_pruning,
        directory.best,
        directory.best_scales,
        *directory.checkpoints.glob("teacher_logits-*"),
    ):
        path.unlink(missing_ok=True)
    if task.unreadable:
        display.say(f"left out as unreadable: {len(task.unreadable)} images, the first {min(task.unreadable)}")
    close(display, config, record, directory.path)


def _draw(directory: RunDirectory, display: Display) -> None:
    """The run's two pictures; whatever goes wrong with them, the run is whole."""
    from pdp.reports.run_figures import draw_run  # matplotlib is needed nowhere before

    try:
        draw_run(directory.path)
    except Exception as error:  # a drawing library's failures share no class
        display.say(f"curves.png and layers.png could not be drawn: {' '.join(str(error).split())[:200]}")


def load_written(model: nn.Module, path: Path) -> None:
    """Loads weights that the main process has written, as soon as they show on this machine."""
    wait_until_visible(path)
    load_weights(model, path)


def recalibrated(config: Config, task: Task, trainer: Trainer) -> list[str]:
    """recipe.recalibrate_bn: new BatchNorm statistics for the hard model, and a note of what they changed."""
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


def layer_table(model: nn.Module, pruner: Pruner | None, example_input: Any) -> pd.DataFrame:
    """layers.csv, a row per convolution and linear layer.

    The columns are name, type, weights, nonzero, sparsity, macs, sparse_macs, prunable, share: the last is the share of
    the units that went, for a layer that names them, such as the first of coupled ones. Without an input the
    multiply-adds are left empty.
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


def attempt(notes: list[str], what: str, compute: Callable[[], Any]) -> Any:
    """What `compute` gives; None and a note where it fails: a trained model is not lost to what is said of it."""
    try:
        return compute()
    except Exception as error:  # of whatever kind: it comes after the training
        notes.append(f"{what} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return None


def _total(counts: pd.Series) -> int | None:
    return None if counts.isna().any() else int(counts.sum())


def make_record(config: Config, task: Task, trainer: Trainer, frame: pd.DataFrame, metrics: dict[str, float]) -> Record:
    """The record of a finished run, but for the metrics measured elsewhere."""
    pruner, accelerator = trainer.pruner, trainer.accelerator
    params, nonzero = count_parameters(trainer.model)
    weights = pruner.prunable_weights.values()
    prunable = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    prunes = pruner.method.prunes
    extras = sum(one.numel() for group in pruner.extra_groups() for one in group["params"])
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
        epoch_best=int(trainer.best["epoch"]) if trainer.best else config.recipe.epochs - 1,
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
        method_options={key: value for key, value in vars(config.method).items() if key != "name"},
        distillation=trainer.objective.record(),
        validation="test" if task.test_is_validation else "held out",
        step_best=int(trainer.best["step"]) if trainer.best and "step" in trainer.best else None,
        prunable_share=round(pruner.prunable_share, 6) if prunes else None,
        skipped_steps=trainer.losses.skipped,
        classes=list(task.class_names),
        model_source=source_digest(config.model.name) if config.model.library == "import" else "",
        start=start_of(config),
        quantize=config.quantize.name,
        quantization=quantization_of(pruner, trainer.model),
        notes=[task.data_note, *task.notes, *(f"unreadable: {name}" for name in sorted(task.unreadable))],
    )
