"""Whole runs of N:M and channel pruning: the content of their records, and their exports."""

import importlib.util
import sys
from pathlib import Path

import onnx
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_language import write_text

from pdp.config.command_line import main
from pdp.config.schema import ModelConfig
from pdp.cost import count_macs
from pdp.runs.record import read_record
from pdp.runs.store import last_line, read_run
from pdp.tasks.image_models import build_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_imagenet(monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)


def train(folder, *overrides):
    assert main("train", ["model=resnet20", "debug=smoke", f"output_dir={folder}", *overrides]) == 0
    (run,) = folder.glob("*/seed0")
    return run


def script():
    spec = importlib.util.spec_from_file_location("export_script", ROOT / "scripts/export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def export(run, form, folder):
    return script()([f"run={run}", f"format={form}", f"output={folder}"])


@pytest.mark.parametrize("method", ["pdp", "gmp"])
def test_an_nm_run(method, tmp_path, capsys):
    run = train(tmp_path / "runs", "prune=nm", "prune.n=1", "prune.m=4", f"method={method}")
    assert run.parent.name.startswith(f"resnet20-digits-{method}-1-4-0.75-")
    record = read_record(run)
    assert (record.pattern, record.target_unit, record.target_sparsity) == ("1:4", "weight", 0.75)
    assert record.sparsity == 0.75 and record.sparsity_all < 0.75
    layers = pd.read_csv(run / "layers.csv")
    assert layers[~layers.prunable].name.tolist() == ["conv1"]
    state = load_file(run / "model.safetensors")
    for name in layers[layers.prunable].name:
        groups = state[f"{name}.weight"].movedim(1, -1).unflatten(-1, (-1, 4))
        assert int(groups.count_nonzero(dim=-1).max()) == 1
    if method == "pdp":
        assert export(run, "nm", tmp_path / "nm") == 2
        assert "2:4" in capsys.readouterr().err and not (tmp_path / "nm").exists()
        assert export(run, "slim", tmp_path / "slim") == 2
        assert "prune=channel" in capsys.readouterr().err
        gaps = pd.read_csv(run / "soft_gap.csv")
        assert gaps.name.tolist() == layers[layers.prunable].name.tolist() and (gaps.gap >= 0).all()


@pytest.mark.parametrize("size", [(4, 1), (8, 5)])
def test_a_run_of_blocks(size, tmp_path, capsys):
    high, wide = size
    words = ["prune=block", f"prune.block=[{high},{wide}]", "sparsity=0.7", "recipe.ema=0.9"]
    run = train(tmp_path / "runs", *words)
    assert run.parent.name.startswith(f"resnet20-digits-pdp-block-{high}x{wide}-0.7-")
    record = read_record(run)
    assert (record.pattern, record.target_unit, record.target_sparsity) == (f"block-{high}x{wide}", "weight", 0.7)
    assert read_run(run).pattern == f"block-{high}x{wide}"
    layers = pd.read_csv(run / "layers.csv")
    prunable = layers[layers.prunable]
    assert abs(record.sparsity - 0.7) * prunable.weights.sum() <= high * wide * len(prunable) / 2
    told = any(f"prune.block=[{high},{wide}]: " in note and "70.00 % asked" in note for note in record.notes)
    assert told == (f"{record.sparsity:.4f}" != "0.7000")
    state, zeros, macs = load_file(run / "model.safetensors"), 0, 0.0
    for name, dense in zip(prunable.name, prunable.macs, strict=True):
        matrix = state[f"{name}.weight"].flatten(1) == 0
        for top in range(0, matrix.shape[0], high):
            for left in range(0, matrix.shape[1], wide):
                block = matrix[top : top + high, left : left + wide]
                assert bool(block.all()) == bool(block.any())
        zeros += int(matrix.sum())
        macs += dense * float((~matrix).float().mean())
    assert zeros == round(record.sparsity * prunable.weights.sum())
    assert record.macs_sparse == pytest.approx(macs, rel=1e-6)
    assert f"block-{high}x{wide}" in capsys.readouterr().out


def test_a_channel_run_and_its_exports(tmp_path):
    run = train(tmp_path / "runs", "prune=channel", "sparsity=0.5", "recipe.recalibrate_bn=2")
    record = read_record(run)
    assert (record.pattern, record.target_unit, record.target_sparsity) == ("channel", "channel", 0.5)
    assert record.macs_sparse < 0.75 * record.macs
    assert any("recalibrated on 2 batches" in note for note in record.notes)
    assert export(run, "slim", tmp_path / "slim") == 0
    assert export(run, "onnx", tmp_path / "onnx") == 0
    held = onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer
    stored = load_file(tmp_path / "slim" / "model.safetensors")
    shapes = {tuple(one.shape) for one in stored.values() if one.dim() == 4}
    assert shapes == {tuple(one.dims) for one in held if len(one.dims) == 4}  # ONNX holds the smaller model
    assert sorted(one.name for one in (tmp_path / "onnx").iterdir()) == ["model.onnx"]
    sys.path.insert(0, str(tmp_path / "slim"))
    try:
        import load_slim
    finally:
        sys.path.pop(0)
    model = load_slim.load_slim(build_model(ModelConfig(name="resnet20", task="images"), 10)[0], tmp_path / "slim")
    frame = count_macs(model, torch.zeros(record.input_shape))
    assert frame.macs.sum() == record.macs_sparse
    assert export(run, "safetensors", tmp_path / "plain") == 0
    kept, plain = load_file(run / "model.safetensors"), load_file(tmp_path / "plain/model.safetensors")
    assert kept.keys() == plain.keys() and all(torch.equal(kept[key], plain[key]) for key in kept)


@pytest.mark.parametrize(
    "words",
    [
        [
            "model=gpt2_tiny",
            "recipe.gradient_checkpointing=true",
            "data.context=32",
            "method.temperature_mode=relative",
        ],
        ["model=bert_tiny", "recipe.precision=bf16", "prune.target=macs"],
    ],
)
def test_a_language_model_loses_heads_and_hidden_units(words, tmp_path, capsys):
    # A short text of its own: to read and to tokenize the docstrings takes seconds.
    text = ["data=text", f"data.root={write_text(tmp_path / 'text')}"] if words[0] == "model=gpt2_tiny" else []
    run = train(tmp_path / "runs", *words, *text, "prune=channel", "sparsity=0.4")
    record = read_record(run)
    layers = pd.read_csv(run / "layers.csv")
    names = layers[layers.prunable & layers.share.notna()].name
    assert len(names) == 2 * len(set(names.str.extract(r"[.](\d+)[.]")[0]))  # an attention and a hidden layer a block
    assert record.macs_sparse < 0.8 * record.macs
    assert export(run, "slim", tmp_path / "slim") == 0
    assert f"MACs: {record.macs:,} -> {record.macs_sparse:,} " in capsys.readouterr().out


def test_a_mac_target_reaches_the_record_and_every_line_that_is_said(tmp_path, capsys):
    run = train(tmp_path, "prune=channel", "sparsity=0.4", "prune.target=macs", "method=gmp")
    record = read_record(run)
    gone = 100 * (1 - record.macs_sparse / record.macs)
    assert f"MACs gone {gone:.2f} % (at target)" in capsys.readouterr().out
    assert 100 * last_line(run / "history.jsonl")["macs_gone"] == pytest.approx(gone)
    assert read_run(run).asked == "40.00 % of MACs"
    assert record.target_unit == "mac"
    assert record.macs_sparse / record.macs == pytest.approx(0.6, rel=0.01)


@pytest.mark.parametrize("overrides", [["prune=nm"], ["prune=channel", "sparsity=0.5"]])
def test_a_dry_run_lists_what_stays_dense(overrides, capsys, tmp_path):
    arguments = ["model=resnet18", "dry_run=true", f"output_dir={tmp_path}", *overrides]
    assert main("train", arguments) == 0
    out = capsys.readouterr().out
    assert "the stem" in out and "nothing was trained" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "format=slim"),
        (["run=x"], "format must be given"),
        (["run=/no/such", "format=slim"], "no directory"),
        (["run=x", "format=tflite"], "no such format"),
        (["run=x", "form=slim"], "form=slim"),
    ],
)
def test_the_export_script_refuses(arguments, words, capsys):
    assert script()(arguments) == 2
    seen = capsys.readouterr()
    assert words in seen.out + seen.err
