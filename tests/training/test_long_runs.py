"""Runs with long epochs: checkpoints by the clock, evaluation and history by steps, skipped steps."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from pdp import Pruner
from pdp.benchmarks.soaking import history, the_run
from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.distill.objective import Objective
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.reports.runs import read_history
from pdp.runs.checkpoint import load_newest, save_checkpoint
from pdp.runs.directory import RunDirectory
from pdp.runs.record import read_record
from pdp.runs.store import read_run, seconds_left
from pdp.training import trainer
from pdp.training.nonfinite import MOST_IN_A_ROW
from pdp.training.step_history import MOST_LINES, StepHistory
from pdp.training.writer import CheckpointWriter

pytestmark = pytest.mark.slow
# 3 epochs of 4 steps.
RUN = ["model=resnet20", "sparsity=0.8", "debug=smoke", "device=cpu", "recipe.history_steps=1"]


def run(folder, *words):
    assert main("train", [*RUN, *words, f"output_dir={folder}"]) == 0
    return the_run(folder)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"))


def same_weights(one, other):
    mine, others = (load_file(path / "model.safetensors") for path in (one, other))
    return mine.keys() == others.keys() and all(torch.equal(mine[name], value) for name, value in others.items())


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("word", ["recipe.checkpoint_minutes=0", "recipe.history_steps=7"])
def test_what_decides_no_result_moves_no_run(word):
    plain, other = compose(RUN[:3]), compose([*RUN[:3], word])
    assert config_hash(plain, "d") == config_hash(other, "d")


def test_measuring_by_steps_and_leaving_steps_out_move_a_run():
    hashes = {
        config_hash(compose([*RUN[:3], *words]), "d")
        for words in ([], ["recipe.evaluate_every=0.1"], ["recipe.evaluate_every=2it"], ["recipe.on_nonfinite=skip"])
    }
    assert len(hashes) == 4
    same = [config_hash(compose([*RUN[:3], f"recipe.evaluate_every={time}"]), "d") for time in ("0.10", "0.1", ".1")]
    assert len(set(same)) == 1


@pytest.mark.parametrize("time", ["0", "0it", "0ep", "1.5", "2.5it", "-1it", "often", "nan"])
def test_a_time_that_is_none_between_two_measurements_is_refused(time):
    with pytest.raises(Refusal, match="recipe.evaluate_every"):
        compose([*RUN, f"recipe.evaluate_every={time}"])


# ---------------------------------------------------------------- checkpoints by the clock


def test_a_checkpoint_is_of_the_moment_it_was_begun_in(tmp_path):
    writer = CheckpointWriter(tmp_path)
    weights, momentum = torch.zeros(100_000), torch.zeros(100_000)
    state = {"model": {"w": weights, "view": weights[5:9]}, "optimizer": [momentum], "step": 1}
    writer.save(state, 1)
    weights += 1  # training goes on
    momentum.fill_(3.0)
    state["step"] = 2
    writer.wait()
    kept = load_newest(tmp_path, print)
    assert kept["step"] == 1 and not kept["model"]["w"].any() and not kept["optimizer"][0].any()
    assert kept["model"]["view"].untyped_storage().nbytes() == 16  # four numbers, not the whole they are seen through


def test_what_goes_wrong_in_the_background_stops_the_training(tmp_path):
    (tmp_path / "file").write_text("no folder")
    writer = CheckpointWriter(tmp_path / "file")
    writer.save({"step": 1}, 1)
    with pytest.raises(Stopped, match="checkpoint"):
        writer.wait()
    writer.wait()  # told once


def test_the_clock_asks_for_a_checkpoint_after_its_minutes_and_never_with_none(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("pdp.training.writer.time.monotonic", lambda: now[0])
    writer, never = CheckpointWriter(tmp_path, 10), CheckpointWriter(tmp_path, 0)
    now[0] += 599
    assert not writer.due
    now[0] += 1
    assert writer.due and not never.due
    writer.save({"step": 1}, 1)
    writer.wait()
    assert not writer.due


def test_names_of_one_step_s_checkpoints_stay_apart_and_in_order(tmp_path):
    for number in range(60):
        save_checkpoint(tmp_path, {"number": number}, 5)
        assert load_newest(tmp_path, print) == {"number": number}
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_a_run_that_is_saved_by_the_clock_ends_the_same(left_alone, tmp_path, monkeypatch):
    saved = []
    save = CheckpointWriter.save
    monkeypatch.setattr(
        CheckpointWriter, "save", lambda self, state, step: saved.append(step) or save(self, state, step)
    )
    mine = run(tmp_path, "recipe.checkpoint_minutes=0.00001")
    assert any(step % 4 for step in saved), "no checkpoint within an epoch"
    assert same_weights(mine, left_alone) and history(mine) == history(left_alone)


def test_a_checkpoint_of_before_goes_on(left_alone, tmp_path, monkeypatch):
    """Without what such checkpoints lacked: of the end of an epoch, the losses before it among it."""

    def stop_at_the_second_epoch_s_end(self, accelerator, step=0):
        self.name = "SIGTERM"
        measured = (the_run(tmp_path) / "history.jsonl").read_text().count("\n")
        return step == 0 and measured == 2  # between two epochs it is asked without a step

    words = [*RUN, f"output_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.StopSignals, "seen", stop_at_the_second_epoch_s_end)
        assert main("train", words) == SavedForRestart.exit_code
    (newest,) = [path for path in (the_run(tmp_path) / "checkpoint").glob("step-000000008*.pt")]
    state = torch.load(newest, weights_only=True)
    for key in ("measured", "recent", "skipped"):
        del state[key]
    state |= {"loss_sum": 8.5, "loss_count": 4}
    torch.save(state, newest)
    newest.with_suffix(".sha256").write_text(hashlib.sha256(newest.read_bytes()).hexdigest())
    assert main("train", words) == 0
    assert same_weights(the_run(tmp_path), left_alone)
    lines, others = (RunDirectory(path).read_history() for path in (the_run(tmp_path), left_alone))
    assert [line["loss"] for line in lines] == [line["loss"] for line in others]


# ---------------------------------------------------------------- measured by steps


def test_measurements_within_epochs_are_in_history_record_and_curves(tmp_path):
    mine = run(tmp_path, "recipe.evaluate_every=3it", "schedule.unit=step", "recipe.soft_every=1")
    lines = RunDirectory(mine).read_history()
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 2]
    assert [line["epochs_done"] for line in lines] == [0.75, 1.5, 2.25, 3.0]
    assert [line["metric_soft"] is not None for line in lines] == [
        False,
        True,
        True,
        True,
    ]  # an epoch's end lies between
    steps = RunDirectory(mine).read_steps()
    assert [line["step"] for line in steps] == list(range(1, 13))
    losses = [line["loss"] for line in steps]
    for number, line in enumerate(lines):  # the mean over the steps since the measurement before it
        assert line["loss"] == pytest.approx(sum(losses[3 * number : 3 * number + 3]) / 3, rel=1e-6)
    record = read_record(mine)
    assert record.step_best in (3, 6, 9, 12) and record.epoch_best == (record.step_best - 1) // 4
    assert [line["epoch"] for line in read_history(mine)] == pytest.approx([-0.25, 0.5, 1.25, 2.0])


def test_a_fraction_of_the_run_and_whole_epochs_say_when_to_measure(tmp_path):
    words = [*RUN, "recipe.epochs=4", "schedule.warmup=1ep", "schedule.ramp=1ep"]
    for time, steps in (("0.5", [8, 16]), ("3ep", [12, 16]), ("1ep", [4, 8, 12, 16])):
        assert main("train", [*words, f"recipe.evaluate_every={time}", f"output_dir={tmp_path / time}"]) == 0
        assert [line["step"] for line in RunDirectory(the_run(tmp_path / time)).read_history()] == steps


def test_how_far_a_run_is_counts_the_steps_within_an_epoch(tmp_path):
    directory = RunDirectory(tmp_path)
    line = {"epoch": 1, "step": 6, "epochs_done": 1.5, "seconds": 30.0, "metric": 0.5, "metrics": {"top1": 0.5}}
    directory.write_history(line)
    assert read_run(tmp_path).epoch == 1
    assert seconds_left(tmp_path, 3) == pytest.approx(30.0)


def test_the_automatic_start_waits_for_five_measurements_wherever_they_are_made():
    """A run of one epoch: the share grows from the step of the fifth good measurement on."""
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    schedule = {"warmup": "auto", "ramp": "20it", "unit": "step"}
    pruner = Pruner(net, sparsity=0.5, epochs=1, steps_per_epoch=100, schedule=schedule)
    pruner.start_epoch(0)
    metrics = [0.4, 0.6, 0.6, 0.6, 0.4, 0.7, 0.7, 0.7, 0.7, 0.7]  # every five steps; five running at step 50
    for step in range(1, 100):
        pruner.step()
        if step % 5 == 0 and metrics:
            pruner.note_metric(metrics.pop(0))
        assert (pruner.share > 0) == (step >= 50)
    assert pruner.start == 50 and pruner.share == pytest.approx(0.5, abs=0.01)


def test_the_automatic_start_comes_in_time_for_its_ramp_within_an_epoch():
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 2))
    schedule = {"warmup": "auto", "ramp": "20it", "unit": "step"}
    pruner = Pruner(net, sparsity=0.5, epochs=1, steps_per_epoch=100, schedule=schedule)
    pruner.start_epoch(0)
    with pytest.warns(UserWarning, match="no start by step 80"):
        for _ in range(99):
            pruner.step()
    assert pruner.start == 80 and pruner.fraction == 1


# ---------------------------------------------------------------- history by steps


@given(every=st.integers(1, 1000), total=st.integers(1, 10**7))
def test_a_history_by_steps_stays_small_however_long_the_run(every, total):
    lines = StepHistory(RunDirectory(Path("nowhere")), every, total)
    assert total // lines.every <= MOST_LINES and (lines.every == every or total // every > MOST_LINES // 2)


def test_no_history_by_steps_where_none_is_asked_for(tmp_path):
    assert not StepHistory(RunDirectory(tmp_path), 0, 100).due(100)


# ---------------------------------------------------------------- losses that are not finite


def poisoned(patch, *steps):
    """The losses of these micro-batches, counted from 1 over all starts, are not a number."""
    loss, calls = Objective.loss, []

    def poisonous(self, model, batch):
        calls.append(1)
        value = loss(self, model, batch)
        return value * float("nan") if len(calls) in steps else value

    patch.setattr(Objective, "loss", poisonous)


def test_a_step_without_a_finite_loss_is_left_out_and_counted(tmp_path, monkeypatch):
    poisoned(monkeypatch, 3, 6)
    mine = run(tmp_path / "one", "recipe.on_nonfinite=skip")
    record = read_record(mine)
    assert record.skipped_steps == 2 and record.steps == 12
    assert RunDirectory(mine).read_history()[-1]["skipped_steps"] == 2
    assert all(torch.isfinite(value).all() for value in load_file(mine / "model.safetensors").values())


def test_of_accumulated_micro_batches_one_is_enough_and_a_killed_run_counts_on(tmp_path, monkeypatch):
    words = ["recipe.on_nonfinite=skip", "recipe.accumulation=2"]
    with monkeypatch.context() as patch:
        poisoned(patch, 3, 4, 9)  # of steps 2, 2 and 5
        whole = run(tmp_path / "whole", *words)
    assert read_record(whole).skipped_steps == 2

    def stop(self, accelerator, step=0):
        self.name = "SIGTERM"
        return step == 6

    with monkeypatch.context() as patch:
        poisoned(patch, 3, 4, 9)
        patch.setattr(trainer.StopSignals, "seen", stop)
        assert main("train", [*RUN, *words, f"output_dir={tmp_path / 'two'}"]) == SavedForRestart.exit_code
    two = run(tmp_path / "two", *words)
    assert read_record(two).skipped_steps == 2 and same_weights(two, whole) and history(two) == history(whole)


def test_a_left_out_step_changes_neither_weights_nor_averages(tmp_path, monkeypatch):
    """From one step to the next everything that training changes is the same, BatchNorm's averages too."""
    poisoned(monkeypatch, 5)
    seen, step = {}, trainer.optimizer_step

    def watched(self):
        step(self)
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        seen[self.step] = state | {
            f"average {key}": one.clone() for key, one in self.average.module.state_dict().items()
        }

    monkeypatch.setattr(trainer, "optimizer_step", watched)
    run(tmp_path, "recipe.on_nonfinite=skip", "recipe.ema=0.9")
    assert all(torch.equal(seen[5][name], value) for name, value in seen[4].items())
    assert not all(torch.equal(seen[6][name], value) for name, value in seen[5].items())


def test_a_run_that_does_not_heal_stops(tmp_path, capsys):
    words = [*RUN, "recipe.on_nonfinite=skip", "recipe.lr=1e30", "recipe.epochs=20", f"output_dir={tmp_path}"]
    assert main("train", words) == Stopped.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"the last {MOST_IN_A_ROW} steps" in line


def test_stopping_names_the_way_to_go_on(tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, 2)
    assert main("train", [*RUN, f"output_dir={tmp_path}"]) == Stopped.exit_code
    assert "recipe.on_nonfinite=skip" in capsys.readouterr().err
    assert not list(the_run(tmp_path).glob("checkpoint/step-*")), "weights that are lost were saved"


def test_every_line_of_both_histories_can_be_read(left_alone):
    for name in ("history.jsonl", "steps.jsonl"):
        assert all(json.loads(line)["step"] for line in (left_alone / name).read_text().splitlines())
