"""Evaluation during training: metrics of the validation part, the line in history.jsonl, and the best weights so far.

The trainer imports this module, so this module does not import the trainer and takes it as `Any`.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from pdp.pruner.alive import live_share
from pdp.training.averaged import averaged
from pdp.training.sharding import save_model_weights
from pdp.training.shipping import save_frozen


def measure_and_file(trainer: Any, stop: Callable[[], bool]) -> dict[str, Any]:
    """Evaluates the hard model, and the soft one if it is due; returns the line of the history.

    Raises `AskedToStop` as soon as `stop` returns True, before anything is written.
    """
    name, pruner = trainer.task.metric_name, trainer.pruner
    soft_every, done = trainer.recipe.soft_every, trainer.step / trainer.steps_per_epoch
    passed = soft_every and done // soft_every > trainer.measured / trainer.steps_per_epoch // soft_every
    soft = None
    if trainer.config.method.name != "dense" and trainer.total and (trainer.step == trainer.total or passed):
        with averaged(trainer, soft=True), pruner.unquantized():
            soft = trainer.measure(trainer.validation, stop)
    with averaged(trainer), pruner.hard():
        metrics = trainer.measure(trainer.validation, stop)
    trainer.metric = metrics[name]
    if trainer.evaluate_every is not None:
        pruner.note_metric(trainer.metric)
    epoch = max(0, trainer.step - 1) // trainer.steps_per_epoch
    note_best(trainer, epoch)
    line = {
        "epoch": epoch,
        "step": trainer.step,
        "loss": trainer.losses.mean,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "metric": trainer.metric,
        "metrics": metrics,
        "metric_soft": None if soft is None else soft[name],
        "sparsity": pruner.share,
        "phase": pruner.phase,
        "layer_shares": {layer.name: layer.pruned / layer.units for layer in pruner.layers},
        "step_ms": median(trainer.step_ms) if trainer.step_ms else None,
        "mask_ms": median(trainer.mask_ms) if trainer.mask_ms else None,
        "seconds": trainer.seconds,
    }
    if pruner.pattern.target_unit == "mac":  # sparsity is that of channels
        line["macs_gone"] = pruner.pattern.reached(pruner.layers)
    if trainer.evaluate_every is not None:
        line["epochs_done"] = done
    if trainer.guard is not None:
        line["skipped_steps"] = trainer.losses.skipped
    if trainer.takes_part:
        line |= trainer.revived.look(pruner) | live_share(pruner)
    if trainer.accelerator.is_main_process:
        trainer.directory.write_history(line)
        trainer.tracker.log(line)
    trainer.losses.forget()
    trainer.measured = trainer.step
    return line


def note_best(trainer: Any, epoch: int) -> None:
    """Keeps the weights of the best evaluation, which counts only at the target sparsity."""
    if not trainer.total or (not trainer.pruner.at_target and trainer.step < trainer.total):
        return
    sign = 1 if trainer.task.higher_is_better else -1
    assert trainer.metric is not None
    if trainer.best is None or sign * trainer.metric > sign * trainer.best["metric"]:
        trainer.best = {"metric": trainer.metric, "epoch": epoch, "step": trainer.step}
        main = trainer.accelerator.is_main_process
        if main:
            trainer.directory.checkpoints.mkdir(parents=True, exist_ok=True)
        if trainer.takes_part:
            with averaged(trainer), trainer.pruner.baked() as hard_model:
                save_model_weights(hard_model, trainer.directory.best, main)
                if main and trainer.pruner.quantizer is not None:
                    save_frozen(trainer.pruner.quantizer.freeze(hard_model), trainer.directory.best_scales)
