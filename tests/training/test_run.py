"""Whole runs through the command line: the files they leave, what they print, and what they measure."""

import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from experiment_cells import EXPERIMENTS, needed
from safetensors.torch import load_file

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.schema import ModelConfig
from pdp.runs.record import read_record
from pdp.tasks import build_task
from pdp.tasks.image_models import build_model
from pdp.training.display import Display, Look, stage
from pdp.training.measurement import as_recorded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["model=resnet20", "sparsity=0.8", "recipe.epochs=6", "data.limit=320", "recipe.batch_size=32"]


def only_run(folder: Path) -> Path:
    (path,) = folder.glob("*/seed*")
    return path


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    assert main("train", [*SHORT, f"output_dir={folder}"]) == 0
    return only_run(folder)


def test_the_missions_command(tmp_path):
    command = [
        sys.executable,
        "train.py",
        "model=mobilenet_v1",
        "prune=random",
        "sparsity=0.866",
        f"output_dir={tmp_path}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stderr
    assert "handwritten digits" in done.stdout and "No ImageNet was named" in done.stdout
    record = read_record(only_run(tmp_path))
    assert str(only_run(tmp_path)) in done.stdout
    assert record.metric >= 0.93
    assert record.target_sparsity == 0.866
    prunable = 4_209_088 - 990 * 1024  # ten classes instead of a thousand
    assert record.sparsity == math.floor(0.866 * prunable + 0.5) / prunable
    assert record.params == 4_231_976 - 990 * 1025
    assert record.macs_sparse < record.macs
    assert record.method == "pdp" and record.data == "digits" and record.epoch_best <= 11


def test_a_run_leaves_all_it_promises(short_run):
    names = {path.name for path in short_run.iterdir()}
    assert names >= {
        "config.yaml",
        "history.jsonl",
        "layers.csv",
        "distributions.npz",
        "checkpoint",
        "model.safetensors",
        "record.json",
    }
    assert len(list((short_run / "checkpoint").glob("step-*.pt"))) == 2
    record = read_record(short_run)
    assert record.epochs == 6 and record.steps == 6 * (320 // 32)
    history = [json.loads(line) for line in (short_run / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in history] == list(range(6))
    # warm-up 0.16 of 6 is 1 epoch, the ramp 0.4 of 6 is 2
    assert [line["phase"] for line in history] == ["dense", "ramp", "full", "full", "full", "full"]
    assert [line["metric_soft"] is None for line in history] == [True] * 5 + [False]
    layers = pd.read_csv(short_run / "layers.csv")
    assert list(layers.columns) == [
        "name",
        "type",
        "weights",
        "nonzero",
        "sparsity",
        "macs",
        "sparse_macs",
        "prunable",
        "share",
    ]
    assert 1 - layers.nonzero.sum() / layers.weights.sum() == record.sparsity_all == record.sparsity
    distributions = np.load(short_run / "distributions.npz")
    assert {key.split("/")[0] for key in distributions.files} == {"layers", "start", "middle", "end"}
    assert distributions["end/weights"].sum(axis=1).tolist() == layers.weights.tolist()


def test_the_weights_load_into_the_plain_model_and_hold_the_zeros(short_run):
    state = load_file(short_run / "model.safetensors")
    model, _ = build_model(ModelConfig(name="resnet20", task="images"), 10)
    model.load_state_dict(state)
    layers = pd.read_csv(short_run / "layers.csv").set_index("name")
    for name, nonzero in layers.nonzero.items():
        assert int(torch.count_nonzero(model.get_submodule(name).weight)) == nonzero


def test_evaluate_agrees_with_the_record_to_the_last_digit(short_run, capsys):
    assert main("evaluate", [f"run={short_run}"]) == 0
    out = capsys.readouterr().out
    assert f"top1 {read_record(short_run).metric!r}" in out
    assert "agrees with the record" in out


def test_evaluate_says_when_the_weights_are_not_the_records(short_run, tmp_path, capsys):
    from safetensors.torch import save_file

    for name in ("config.yaml", "record.json"):
        (tmp_path / name).write_bytes((short_run / name).read_bytes())
    state = load_file(short_run / "model.safetensors")
    save_file(
        {key: value.roll(1) if value.dim() > 1 else value for key, value in state.items()},
        tmp_path / "model.safetensors",
    )
    assert main("evaluate", [f"run={tmp_path}"]) == 3
    said = capsys.readouterr()
    assert "DIFFERS from the record" in said.out
    assert "further than roundings on another processor" in said.err and len(said.err.strip().splitlines()) == 1
    state["fc.bias"].zero_()
    save_file(state, tmp_path / "model.safetensors")
    assert main("evaluate", [f"run={tmp_path}"]) == 3
    assert "these are not the record's weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recorded", "code"),
    [
        ({"top1": 0.3, "loss": None}, 0),  # as of few images, of which roundings turn over some
        ({"top1": 0.3, "loss": 7.0}, 3),
        ({"top1": 0.3}, 3),  # older than its loss
        ({"top1": math.nan, "loss": math.nan}, 3),
    ],
)
def test_evaluate_stops_at_what_roundings_cannot_explain(short_run, tmp_path, recorded, code, capsys):
    for name in ("config.yaml", "record.json", "model.safetensors"):
        (tmp_path / name).write_bytes((short_run / name).read_bytes())
    record = json.loads((tmp_path / "record.json").read_text())
    recorded = {key: record["metrics"][key] * 1.001 if value is None else value for key, value in recorded.items()}
    record |= {"metrics": recorded, "metric": recorded["top1"]}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert main("evaluate", [f"run={tmp_path}"]) == code
    assert "DIFFERS from the record" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("now", "then", "same"),
    [
        ({"perplexity": 3012.0, "loss": 8.0104}, {"perplexity": 2981.0, "loss": 8.0}, True),
        ({"perplexity": 3641.0, "loss": 8.2}, {"perplexity": 2981.0, "loss": 8.0}, False),
        ({"perplexity": math.inf, "loss": 712.0}, {"perplexity": math.inf, "loss": 711.9}, True),
        ({"perplexity": math.inf, "loss": 712.0}, {"perplexity": 2981.0, "loss": 8.0}, False),
        ({"pearson": math.nan, "loss": math.nan}, {"pearson": math.nan, "loss": math.nan}, True),
        ({"pearson": math.nan, "loss": math.nan}, {"pearson": 0.9, "loss": 0.4}, False),
        ({"pearson": 0.04, "loss": 2.2501}, {"pearson": 0.0, "loss": 2.25}, True),  # constant but for roundings
        ({"matthews_correlation": 0.031, "loss": 0.62}, {"matthews_correlation": 0.0, "loss": 0.62}, True),
        ({"perplexity": 2985.0}, {"perplexity": 2981.0}, True),  # of an old record
        ({"perplexity": 3100.0}, {"perplexity": 2981.0}, False),
        ({"perplexity": 2981.0}, {"perplexity": math.inf}, False),
    ],
)
def test_what_roundings_explain_is_a_matter_of_the_loss(short_run, now, then, same):
    record = read_record(short_run)
    record.metric_name = next(iter(then))
    record.metric, record.metrics = then[record.metric_name], then
    assert as_recorded(now, record) == same


def test_the_metric_is_that_of_a_plain_loop_over_the_test_set(short_run):
    config = compose([*SHORT])
    task = build_task(config)
    task.open_data()
    model, _ = build_model(ModelConfig(name="resnet20", task="images"), 10)
    model.load_state_dict(load_file(short_run / "model.safetensors"))
    model.eval()
    right = total = 0
    for batch in task.evaluation_loader("test", 7, 0):
        with torch.no_grad():
            right += int((model(batch["image"]).argmax(1) == batch["label"]).sum())
        total += len(batch["label"])
    assert total == task.sizes()["test"]
    assert read_record(short_run).metric == right / total


def test_the_same_command_returns_a_finished_run_at_once_and_rerun_moves_it_aside(tmp_path, capsys):
    arguments = ["model=resnet20", "sparsity=0.5", "debug=smoke", f"output_dir={tmp_path}"]
    assert main("train", arguments) == 0
    first = read_record(only_run(tmp_path))
    assert main("train", arguments) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert read_record(only_run(tmp_path)).finished_at == first.finished_at
    assert main("train", [*arguments, "rerun=true"]) == 0
    runs = sorted(path.name for path in tmp_path.glob("*/seed*"))
    assert len(runs) == 2 and runs[1].startswith("seed0.before-")
    assert read_record(next(tmp_path.glob("*/seed0"))).metric == first.metric


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path, short_run, monkeypatch):
    from pdp.errors import SavedForRestart
    from pdp.training import trainer

    looks = []

    def stop_at(self, accelerator, step=0):
        looks.append(step)
        self.name = "SIGTERM"
        return step == 27  # in the third epoch, on the ramp

    with monkeypatch.context() as patch:
        patch.setattr(trainer.StopSignals, "seen", stop_at)
        assert main("train", [*SHORT, f"output_dir={tmp_path}"]) == SavedForRestart.exit_code
    assert looks[-1] == 27
    assert main("train", [*SHORT, f"output_dir={tmp_path}", "resume=false"]) == 2
    assert main("train", [*SHORT, f"output_dir={tmp_path}"]) == 0
    stopped, whole = (load_file(path / "model.safetensors") for path in (only_run(tmp_path), short_run))
    assert all(torch.equal(stopped[key], whole[key]) for key in whole)
    losses = [
        [json.loads(line)["loss"] for line in (path / "history.jsonl").read_text().splitlines()]
        for path in (only_run(tmp_path), short_run)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(tmp_path, capsys):
    assert (
        main(
            "train",
            [
                "model=resnet20",
                "sparsity=0.5",
                "recipe.lr=1e30",
                "recipe.epochs=4",
                "data.limit=64",
                f"output_dir={tmp_path}",
            ],
        )
        == 3
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "loss" in line and "recipe.lr" in line
    assert not list(tmp_path.glob("*/*/record.json"))


@pytest.mark.parametrize("method", ["gmp", "dense"])
def test_other_methods_run_in_the_same_loop(method, tmp_path):
    arguments = ["model=resnet20", f"method={method}", "debug=smoke", f"output_dir={tmp_path}"]
    assert main("train", [*arguments, *(["sparsity=0.5"] if method != "dense" else [])]) == 0
    record = read_record(only_run(tmp_path))
    assert record.method == method
    assert record.sparsity == pytest.approx(0 if method == "dense" else 0.5, abs=1e-3)


@pytest.mark.parametrize(
    "extra",
    [
        ["recipe.accumulation=4"],
        ["recipe.precision=bf16"],
        ["recipe.ema=0.9"],
        ["recipe.channels_last=true"],
        ["recipe.clip=1.0"],
        ["recipe.optimizer=adamw", "recipe.lr=0.001"],
        ["recipe.augmentation=pad_crop_flip", "data.workers=2"],
        ["schedule.unit=step"],
        ["schedule.warmup=auto", "recipe.epochs=8"],
        ["recipe.soft_every=1"],
        ["allocation=erk"],
    ],
    ids=lambda extra: extra[0],
)
def test_every_option_of_the_recipe_runs_and_reaches_the_share(extra, tmp_path):
    assert main("train", ["model=resnet20", "sparsity=0.5", "debug=smoke", f"output_dir={tmp_path}", *extra]) == 0
    assert read_record(only_run(tmp_path)).sparsity == pytest.approx(0.5, abs=1e-5)


# One of each pattern and kind of model; that every method runs with every pattern is held elsewhere.
SMOKED = [
    "digits/mobilenet_v1_random_866",
    "glue/bert_base_mnli_gmp_90",
    "glue/bert_base_qqp_pdp_90",
    "gpt2/gpt2_wikitext_2_optg_90",
    "imagenet/mobilenet_v2_random_80_rigl",
    "imagenet/resnet18_nm_2_8_srste",
    "imagenet/resnet50_channel_macs_50_sfp",
    "imagenet/resnet50_random_90",
]


MARKS = ("paper", "third party (", "method's authors", "ours")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_says_where_its_values_come_from_and_dry_runs(experiment, capsys, tmp_path, monkeypatch):
    """One composition of its files serves both, which takes as long as the dry run."""
    monkeypatch.delenv("IMAGENET_DIR", raising=False)  # they compose without data
    config = compose([f"experiment={experiment}", "dry_run=true", *needed(experiment, tmp_path)])
    assert not config.data.unasked
    pruned = set() if config.method.name == "dense" else {"method", "schedule"}
    assert {"cell", "recipe"} | pruned <= {*config.provenance}
    for text in config.provenance.values():
        assert text.startswith(MARKS), text
    # The large language models once, with PDP: the other methods on small ones.
    large = ("glue/bert_base_mnli_pdp_90", "gpt2/gpt2_wikitext_2_pdp_90")
    small = ["debug=smoke"] if experiment.startswith(("glue", "gpt2")) and experiment not in large else []
    words = [f"experiment={experiment}", "dry_run=true", f"output_dir={tmp_path / 'runs'}", *small]
    assert main("train", [*words, *needed(experiment, tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "nothing was trained" in out and "MACs" in out and ("schedule" in out or experiment.endswith("_dense"))
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_without_a_target_shows_the_zeros_there_are(tmp_path, capsys):
    assert main("train", ["model=resnet20", "method=str", "method.controller=none", "dry_run=true"]) == 0
    assert "there is no target" in capsys.readouterr().out
    words = ["experiment=glue/bert_base_mnli_pofa_finetune_90", "dry_run=true"]
    assert main("train", [*words, *needed(words[0], tmp_path)]) == 0
    assert "50.00 %" in capsys.readouterr().out  # every other input of each linear layer


@pytest.mark.parametrize("experiment", SMOKED)
def test_experiments_run_in_seconds_under_smoke(experiment, tmp_path):
    assert main("train", [f"experiment={experiment}", "debug=smoke", f"output_dir={tmp_path}"]) == 0
    assert read_record(only_run(tmp_path)).status == "finished"


def test_the_model_before_pruning_and_the_best_epoch_are_measured_on_the_test_set(short_run):
    record = read_record(short_run)
    assert 0 < record.metric_before_pruning < 1 and 0 < record.metric_best <= 1
    assert record.epoch_best >= 2  # the best counts only at the target
    history = [json.loads(line) for line in (short_run / "history.jsonl").read_text().splitlines()]
    at_target = {line["epoch"]: line["metric"] for line in history if line["phase"] == "full"}
    assert at_target[record.epoch_best] == max(at_target.values())
    if record.epoch_best == 5:
        assert record.metric_best == record.metric


def test_on_a_terminal_a_bar_shows_loss_metric_sparsity_and_time_left(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    command = [sys.executable, "train.py", "model=resnet20", "sparsity=0.5", "debug=smoke", f"output_dir={tmp_path}"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    times = r"epoch 3/3 \S+ 12/12 \d:\d\d:\d\d gone, \d:\d\d:\d\d left"
    values = r"loss \d+\.\d+, validation top1 \d+\.\d+ %, sparsity 50\.00 % \(at target\), [\d,]+ images/s"
    assert re.search(rf"{times}\s*[\r\n]+{values}", text), text


def test_elsewhere_a_line_every_half_a_minute_says_where_a_run_is(monkeypatch, capsys):
    """Time is a stand-in here: what is waited for is half a minute."""
    now = [0.0]
    monkeypatch.setattr("pdp.training.display.time.monotonic", lambda: now[0])
    display = Display()
    look = Look(120, 1200, 1, 12, 1.2345, 0.05, 0.433, stage("ramp", 0.5), 512.4, "images", 80.0, "top1", 0.881)
    for moment in (0.0, 10.0, 29.0, 31.0, 45.0, 62.0):
        now[0] = moment
        display.step(look)
    display.step(look, ends=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and set(lines) == {
        "step 120/1,200, epoch 2/12: loss 1.234, validation top1 88.10 %, sparsity 43.30 % (ramp 50 %), 512 images/s, "
        "rate 0.05, 1 min 20 s left"
    }
