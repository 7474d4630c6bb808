"""scripts/benchmark_latency.py: its rows, and its files against the cells' fake-quantized models; no time is judged."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pdp.benchmarks.cell_latency import ENGINES
from pdp.benchmarks.cell_models import build, cell_of, cells_of, open_task, sample_of
from pdp.errors import Refusal
from pdp.export.onnx import onnx_outputs
from pdp.scripting import guarded

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_latency  # noqa: E402

pytestmark = pytest.mark.slow

IMAGES = ["model=resnet20", "data=digits", "prune=random"]
TEXTS = ["model=bert_tiny", "data.limit=60", "data.max_length=16", "model.sizes.hidden_size=16"]
TEXTS += ["model.sizes.intermediate_size=32", "model.sizes.num_hidden_layers=1", "model.sizes.num_attention_heads=2"]
STUDY = f"common: [{', '.join(IMAGES)}]\nsparsities: [0.8]\nseeds: [0, 1]\ntuning: none\nmethods:\n"


def called(*words):
    return guarded(
        "benchmark_latency", lambda: benchmark_latency.run(benchmark_latency.make_parser().parse_intermixed_args(words))
    )


def test_the_cells_of_a_study_and_of_the_one_in_turn_are_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    study, out = tmp_path / "small.yaml", tmp_path / "new" / "latency.json"
    study.write_text(STUDY + "  dense: []\n  pdp: [[quantize=int8, recipe.lr=0.1], [quantize=int8, recipe.lr=0.2]]\n")
    (tmp_path / "small_in_turn.yaml").write_text(STUDY + "  held: [[from=results/runs/nowhere, quantize=int8]]\n")
    words = ["--rounds", "3", "--batch", "1", "3", "--out", str(out)]
    assert called(str(study), "recipe.epochs=2", *words) == 0
    written = json.loads(out.read_text())
    assert written["machine"]["threads"] == 1 and written["machine"]["study"] == "small"
    rows = {(row["label"], row["batch"], row["engine"]): row for row in written["results"]}
    labels = ["dense", "pdp+int8, random 80 %", "held+int8, random 80 %"]
    mine = [(label, batch) for batch in (1, 3) for label in labels]
    assert [key[:2] for key in rows if key[2] == ENGINES[0]] == mine and {key[2] for key in rows} <= {*ENGINES}
    for (label, _, engine), row in rows.items():
        low, high = row["quartiles_ms"]
        assert 0 < low <= row["latency_ms"] <= high and row["input"] == [3, 8, 8]
        assert row["inputs"] == "16 test samples of digits"
        assert row["bytes"] == rows[label, 1, ENGINES[0]]["bytes"] and row["target_sparsity"] == 0.8 * (
            label != "dense"
        )
        assert label != "dense" or row["speedup"] == 1 or engine != ENGINES[0]
    assert rows["held+int8, random 80 %", 1, ENGINES[0]]["bytes"] * 3 < rows["dense", 1, ENGINES[0]]["bytes"]
    printed = capsys.readouterr().out
    assert all(label in printed for label in labels) and f"written to {out}" in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "zeros"),
    [([*TEXTS, "method=gmp", "sparsity=0.8", "quantize=int8"], 0.8),
     ([*IMAGES[:2], "prune=channel", "method=pdp", "sparsity=0.5", "quantize=int8"], None)],
    ids=["texts", "slim"],
)  # fmt: skip
def test_a_cell_s_file_computes_as_its_masked_fake_quantized_model(words, zeros, tmp_path):
    import onnx

    cell = cell_of(words)
    task, batch, note = open_task(cell, 16)
    made, share = build(cell, task, batch, note)
    path = tmp_path / "model.onnx"
    made.write_onnx(made.shipped()[0], path, weights="int8")
    named = {"input": batch["image"]} if "image" in batch else task.inputs_of(made.model, batch)

    def outputs():
        with torch.no_grad():
            return made.model(named["input"]) if "image" in batch else made.model(**named).logits

    with made.frozen.applied(made.model):
        expected = outputs()
    size = float(expected.max() - expected.min())
    rounding = float((outputs() - expected).abs().max())
    assert 0 < rounding < 0.1 * size and len(batch["index"]) == 16
    # Another processor may round numbers near a middle the other way, which weights of chance do not keep small.
    assert (onnx_outputs(path, named, exact=True) - expected).abs().max() < max(size / 255, 2 * rounding)
    stored = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer]
    integers = np.concatenate([one.reshape(-1) for one in stored if one.dtype == np.int8 and one.ndim > 1])
    weights = {name: made.model.get_parameter(name) for name in made.frozen.weights}
    if zeros is None:  # channels are gone, from the file too
        assert share == pytest.approx(0.5, abs=0.02)
        assert len(integers) == sum(int((one != 0).sum()) for one in weights.values())
        return
    pruned = [one for name, one in weights.items() if (one == 0).float().mean() > 0.5]
    assert share == pytest.approx(zeros, abs=1e-3) and len(pruned) == 6  # gmp's own allocation is uniform
    assert (integers == 0).sum() >= sum(int((one == 0).sum()) for one in pruned)


def test_cells_that_build_the_same_model_are_one():
    base = [*IMAGES, "sparsity=0.5", "quantize=int8"]
    tried = [["method=pdp"], ["method=pdp", "recipe.lr=0.3"], ["method=pdp", "method.refresh=2"]]
    tried += [["method=str"], ["method=held", "from=results/runs/nowhere"]]
    found = cells_of([*base, *words] for words in tried)
    assert [cell.label for cell in found] == [f"{one}+int8, random 50 %" for one in ("pdp", "str", "held")]
    assert len(cells_of([[*base, "method=pdp"], [*base, "method=pdp", "data.image_size=16"]])) == 2
    assert cell_of([*base, "method=gmp"]).config.allocation.name == "uniform"  # its own
    assert cell_of([*base, "method=gmp", "allocation=erk"]).config.allocation.name == "erk"
    assert cell_of([*IMAGES[:2], "prune=nm", "method=asp"]).label == "asp, 2:4 50 %"
    assert cell_of([*IMAGES, "method=dense"]).label == "dense"
    with pytest.raises(Refusal, match="give prune= in the study"):
        cell_of([*IMAGES[:2], "method=held", "from=results/runs/nowhere"])


def test_a_single_text_is_the_one_of_middle_length_without_padding():
    tokens = torch.arange(1, 16).reshape(3, 5)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    one = sample_of({"input_ids": tokens, "attention_mask": mask, "index": torch.arange(3)})
    assert one["input_ids"].tolist() == [[11, 12, 13]] and one["attention_mask"].sum() == 3
    assert one["index"].tolist() == [2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{study}", "--rounds", "0"], "--rounds 0: give at least 1"),
        (["{study}", "--batch", "2", "2"], "give each number once"),
        (["{study}", "--batch", "0"], "--batch 0: give at least 1"),
        (["{study}", "--batch", "100000"], "the test set has 359 samples"),
        (["{study}", "quantize=int3"], "quantize=int3"),
        (["{study}", "modle=resnet20"], "modle"),
        (["nowhere.yaml"], "nowhere.yaml is no study"),
        ([], "required: study"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    study = tmp_path / "study.yaml"
    study.write_text(STUDY + "  pdp: []\n")
    assert called(*(one.format(study=study) for one in words), "--out", str(tmp_path / "out.json")) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out.json").exists()
