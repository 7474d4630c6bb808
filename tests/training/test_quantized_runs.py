"""Quantized runs: what a record says of them, what ships is what is measured, and stopped ones go on bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import config_hash, run_directory
from pdp.config.stored import from_yaml, to_yaml
from pdp.errors import SavedForRestart
from pdp.quantize.sizes import compressor
from pdp.reports.cells import cells
from pdp.reports.runs import read_runs
from pdp.runs.record import SCALES, read_record
from pdp.training.export_run import ExportedRun
from pdp.training.shipping import read_frozen

pytestmark = pytest.mark.slow

# 4 epochs of 5 steps; quantized from step 10 on, ranges observed from the first.
SHORT = ["model=resnet20", "sparsity=0.8", "recipe.epochs=4", "data.limit=160", "device=cpu", "quantize.start=0.5"]


def only_run(folder):
    (run,) = folder.glob("*/seed0")
    return run


@pytest.fixture(scope="module")
def int8_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    assert main("train", [*SHORT, "quantize=int8", f"output_dir={folder}"]) == 0
    return only_run(folder)


def test_its_record_says_each_step_on_the_way(int8_run, capsys):
    record = read_record(int8_run)
    assert "-0.8-int8-" in int8_run.parent.name
    assert (record.quantize, record.quantization["weight_bits"], record.quantization["activation_bits"]) == (
        "int8",
        8,
        8,
    )
    assert record.quantization["weights"] == 22 and record.quantization["activations"] == 34
    assert record.quantization["zeros"] >= record.sparsity > 0.79
    assert None not in (record.metric, record.metric_hard, record.metric_soft)
    weights = record.params - 1568 - 10  # but norms' and the last layer's biases
    sizes = record.bytes_on_disk
    assert sizes["fp32"] - sizes["int8"] == 3 * weights - 4 * (1568 // 2 + 10) - 8 * 34
    nonzero = round((1 - record.quantization["zeros"]) * weights)
    assert sizes["int8"] - sizes["int8_bitmask"] == pytest.approx(weights - nonzero - weights / 8, abs=22)
    assert sizes["int8_runs"] < sizes["int8"] and sizes["fp32_bitmask"] < sizes["fp32"]
    assert (compressor() is None) or sizes["int8_zstd"] < sizes["int8"]
    assert main("evaluate", [f"run={int8_run}"]) == 0
    assert "agrees with the record" in capsys.readouterr().out


def test_its_weights_are_floats_with_scales_beside_and_what_is_measured_is_both(int8_run):
    record, exported = read_record(int8_run), ExportedRun(int8_run)
    frozen = read_frozen(int8_run / SCALES)
    loader = exported.task.evaluation_loader("test", 500, 0)
    right, count = {"hard": 0, "int8": 0}, 0
    for batch in loader:
        count += len(batch["label"])
        with torch.no_grad():
            right["hard"] += int((exported.model(batch["image"]).argmax(1) == batch["label"]).sum())
            with frozen.applied(exported.model):
                right["int8"] += int((exported.model(batch["image"]).argmax(1) == batch["label"]).sum())
    assert right["hard"] / count == record.metric_hard and right["int8"] / count == record.metric
    history = [json.loads(line) for line in (int8_run / "history.jsonl").read_text().splitlines()]
    assert len(history) == 4 and record.epoch_best >= 2  # before, what was measured does not ship


@pytest.mark.parametrize(
    "words",
    [
        ["quantize=int8"],
        ["quantize=int8", "quantize.ranges=learned", "recipe.ema=0.9"],
        ["quantize=int8", "prune=block", "prune.block=[4,2]"],
    ],
    ids=" ".join,
)
def test_a_run_stopped_in_every_phase_goes_on_bit_for_bit(words, tmp_path, monkeypatch, int8_run):
    from pdp.training import trainer

    whole = int8_run
    if len(words) > 1:
        assert main("train", [*SHORT, *words, f"output_dir={tmp_path / 'whole'}"]) == 0
        whole = only_run(tmp_path / "whole")
    arguments = [*SHORT, *words, f"output_dir={tmp_path / 'stopped'}"]
    stops = [2, 7, 12, 18]  # before the ramp, on it, just quantized, at the end

    def stop_at(self, accelerator, step=0):
        self.name = "SIGTERM"
        return step in stops and not stops.remove(step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.StopSignals, "seen", stop_at)
        while stops:
            assert main("train", arguments) == SavedForRestart.exit_code
    assert main("train", arguments) == 0
    stopped = only_run(tmp_path / "stopped")
    for name in ("model.safetensors", SCALES):
        one, other = load_file(stopped / name), load_file(whole / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert read_record(stopped).metrics == read_record(whole).metrics


def test_a_dense_model_and_a_pruned_one_are_quantized_after(tmp_path, int8_run, capsys):
    folder = f"output_dir={tmp_path}"
    few = [
        "recipe.epochs=1",
        "recipe.lr_warmup=0",
        "data.limit=160",
        "device=cpu",
        "quantize=int4w",
        "quantize.start=0",
    ]
    assert main("train", [f"from={int8_run}", *few, folder]) == 0, capsys.readouterr().err
    pruned = read_record(only_run(tmp_path))
    assert pruned.method == "held" and pruned.sparsity == read_record(int8_run).sparsity
    assert pruned.quantization["activations"] == 0 and pruned.quantize == "int4w"
    assert main("train", ["model=resnet20", "prune=none", *few, folder]) == 0
    capsys.readouterr()
    both = read_runs(sorted(path for path in tmp_path.glob("*/seed0")))
    assert sorted(both.method) == ["dense+int4w", "held+int4w"]
    assert cells(both).dense_seeds.eq(0).all()  # neither is the dense baseline of the other


def test_no_run_of_before_has_moved_and_its_configuration_opens_as_none():
    config = compose(["model=resnet20", "sparsity=0.9"])
    text = to_yaml(config)
    assert "quantize:\n  name: none\n" in text
    old = from_yaml(text.replace("quantize:\n  name: none\n", ""))
    assert old == config and config_hash(old, "0") == config_hash(config, "0")
    quantized = compose(["model=resnet20", "sparsity=0.9", "quantize=int8"])
    assert config_hash(quantized, "0") != config_hash(config, "0")
    same = compose(["model=resnet20", "sparsity=0.9", "quantize=int8", "quantize.start=0.70"])
    assert run_directory(same, "0") == run_directory(quantized, "0")
    assert from_yaml(to_yaml(quantized)) == quantized


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quantize=int3"], "did you mean int8 or int4w?"),
        (["quantize=8"], "known: int4w, int8, none"),
        (["quantize.name=int8"], "give quantize=<name>"),
        (["quantize.start=0.5"], "add quantize=int8 or int4w"),
        (["quantize=int8", "quantize.start=1"], "quantize.start=1 leaves nothing"),
        (["quantize=int8", "quantize.start=9ep"], "quantize.start=9ep leaves nothing of a run of 4 epochs"),
        (["quantize=int8", "quantize.start=20it"], "step 20 of a run of 20"),
        (["quantize=int8", "quantize.start=auto"], "quantize.start=auto is not a time"),
        (["quantize=int4w", "quantize.ranges=lerned"], "did you mean learned?"),
        (["quantize=int4w", "quantize.exclude=[nothing]"], "quantize.exclude=nothing matches no"),
        (["quantize=int4w", "quantize.exclude=['']"], "quantize.exclude has an empty pattern"),
    ],
)
def test_bad_words_are_refused_in_one_line(words, said, tmp_path, capsys):
    short = [one for one in SHORT if not one.startswith("quantize")]
    assert main("train", [*short, *words, f"output_dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.splitlines()) == 1
    assert not list(tmp_path.iterdir())
