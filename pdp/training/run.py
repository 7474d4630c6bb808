"""One run, from its configuration to its record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator

from pdp.config.data_schema import data_label
from pdp.config.identity import config_hash, run_directory
from pdp.config.schema import Config
from pdp.config.stored import to_yaml
from pdp.distill.distillation import make_objective
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.importing import set_apart
from pdp.ranks import OWN_PROCESS
from pdp.runs.directory import RunDirectory
from pdp.runs.record import RECORD, Record, read_record
from pdp.tasks import build_task
from pdp.tracking.making import make_tracker
from pdp.training.assembly import check_device, make_accelerator, make_pruner, steps_in_epoch
from pdp.training.calibrating import prune_calibrated
from pdp.training.closing import close, say_renamed
from pdp.training.display import Display
from pdp.training.failures import reported_failures
from pdp.training.finishing import finish
from pdp.training.optimizers import make_average
from pdp.training.preview import preview
from pdp.training.sharding import shards
from pdp.training.shipping import said_of
from pdp.training.signals import StopSignals
from pdp.training.start import make_first_model, note_times, note_zeros
from pdp.training.together import decided_by_main, wait_until_visible
from pdp.training.trainer import Trainer
from pdp.wording import percent


def train(config: Config, shown: bool = True) -> Record | None:
    """Trains, prunes, measures and records one run, and returns its record; None for a dry run.

    With `shown` the results and the run's folder are printed at the end.
    """
    task = build_task(config)
    if config.dry_run:
        preview(config, task)
        return None
    with StopSignals(OWN_PROCESS.get()) as signals, reported_failures(config):
        with set_apart():
            task.open_data()
        directory = RunDirectory(Path(run_directory(config, task.data_fingerprint)))
        accelerator = make_accelerator(config)
        check_device(config, accelerator)
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
        # Everything that can be refused is checked before anything is written.
        model = make_first_model(config, task)
        if not shards(config):  # a sharded one may be too large for the device
            model = model.to(accelerator.device)
        objective = make_objective(config, task, model, accelerator)
        steps = steps_in_epoch(config, task)
        pruner = make_pruner(config, task, model, steps)
        task.notes += note_zeros(config, model, pruner) + note_times(config, pruner)
        if pruner.quantizer is not None:
            display.say(said_of(pruner.quantizer))
        if pruner.method.prunes:
            share = percent(pruner.prunable_share)
            display.say(f"{share} of all weights are prunable; dry_run=true says what stays dense")
        run_id = f"{config_hash(config, task.data_fingerprint)[:8]}-{config.seed}"
        tracker = make_tracker(config, directory.path, run_id, display.say, accelerator.is_main_process)
        with claimed(directory, config, accelerator, display), tracker:
            decided_by_main(accelerator, lambda: task.keep(directory.path, directory.begun))
            for note in task.notes:
                display.say(note)
            trainer = Trainer(
                config, task, model, pruner, accelerator, directory, display, steps, tracker, objective, signals
            )
            if trainer.resume():
                display.say(f"going on from epoch {trainer.epoch + 1}, step {trainer.step}")
            else:
                if accelerator.is_main_process:
                    directory.cut_history(-1, -1)
                if pruner.method.calibrates:
                    trainer.said = [prune_calibrated(config, task, model, pruner, accelerator, directory)]
                    display.say(trainer.said[0])
                    trainer.average = make_average(model, config.recipe)
            objective.prepare(directory, display.say)
            tracker.start(trainer.step)
            trainer.fit()
            finish(config, task, trainer, directory, display)
            accelerator.wait_for_everyone()  # until the main process has written the record
            wait_until_visible(directory.path / RECORD)
            return read_record(directory.path)


@contextmanager
def claimed(directory: RunDirectory, config: Config, accelerator: Accelerator, display: Display) -> Iterator[None]:
    """Locks the run's directory on the main process while the run is in progress."""

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

    decided_by_main(accelerator, claim)  # if another process holds the run, nothing is changed
    try:
        yield
    except BaseException as error:
        if accelerator.is_main_process:
            _note_ending(directory, error)
        raise
    finally:
        directory.release()


def _note_ending(directory: RunDirectory, error: BaseException) -> None:
    """Writes down how the run ended, so that it is not shown as running; a refused start leaves no trace."""
    kinds = {SavedForRestart: "saved", Stopped: "stopped", Refusal: "refused", KeyboardInterrupt: "interrupted"}
    how = next((word for kind, word in kinds.items() if isinstance(error, kind)), "failed")
    with suppress(OSError):  # the disk may be full, which may be why the run ended
        if how == "refused":
            directory.discard_if_nothing_begun()
        if directory.path.is_dir():
            directory.note_ending(how, " ".join(str(error).split())[:300])
