"""Whole runs of language models: killed and resumed, evaluated again, exported for plain transformers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tiny_language import write_text

from pdp.benchmarks.forked_runs import Start
from pdp.config.command_line import main
from pdp.training.evaluation import measure
from pdp.training.export_run import ExportedRun, export
from pdp.training.optimizers import make_optimizer
from scripts import export as export_script

pytestmark = pytest.mark.language

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
BERT = [
    "model=bert_tiny",
    "model.sizes={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}",
    "model.arguments={hidden_dropout_prob: 0.1}",  # so that the random state matters
    "sparsity=0.75",
    "data.limit=400",
    "data.length_grouping=true",
    "recipe.layer_decay=0.9",
    "recipe.precision=bf16",
    "recipe.epochs=5",
    "recipe.batch_size=16",
]
GPT2 = [
    "model=gpt2_tiny",
    "model.sizes={n_embd: 32, n_layer: 2, n_head: 2, n_positions: 32, resid_pdrop: 0.1}",
    "sparsity=0.75",
    "data.limit=160",
    "data.context=32",
    "data.vocabulary=300",
    "recipe.epochs=4",
    "recipe.batch_size=16",
    "method=gmp",
    "method.update_every=3",
    "recipe.gradient_checkpointing=true",
]


def start(command: list[str], folder: Path) -> Start:
    return Start([*command, f"output_dir={folder}"], folder / "log")


def the_run(folder: Path) -> Path | None:
    return next(folder.glob("*/seed0"), None)


def epochs_done(folder: Path) -> int:
    run = the_run(folder)
    history = run / "history.jsonl" if run else None
    return len(history.read_text().splitlines()) if history and history.is_file() else 0


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """The text is short, because every start reads and tokenizes all of it: docstrings take seconds."""
    text = write_text(tmp_path_factory.mktemp("text"), 600)
    return {"bert": BERT, "gpt2": [*GPT2, "data=text", f"data.root={text}"]}


@pytest.fixture(scope="module")
def runs(commands, tmp_path_factory):
    """A finished run of each kind."""
    found = {}
    for name, command in commands.items():
        folder = tmp_path_factory.mktemp(name)
        process = start(command, folder)
        assert process.wait() == 0, process.output
        found[name] = the_run(folder), process.output
    return found


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_killed_in_the_ramp_and_the_same_bit_for_bit(commands, runs, tmp_path, name):
    command = commands[name]
    process = start(command, tmp_path)
    while epochs_done(tmp_path) < 2:
        assert process.code is None, process.output
        time.sleep(0.001)
    time.sleep(0.05)  # into the next epoch
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.output
    process = start(command, tmp_path)
    assert process.wait() == 0 and "going on from epoch" in process.output, process.output
    whole, resumed = (load_file(run / "model.safetensors") for run in (runs[name][0], the_run(tmp_path)))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_the_record_says_what_the_text_was(runs, tmp_path):
    docstrings = start([*GPT2, "recipe.epochs=3"], tmp_path)
    assert docstrings.wait() == 0, docstrings.output
    found = runs["bert"], (the_run(tmp_path), docstrings.output)
    for name, words, (run, output) in zip(
        ("bert", "gpt2"), ("made from a grammar", "Python's own standard library"), found, strict=True
    ):
        record = json.loads((run / "record.json").read_text())
        assert words in output and words in record["notes"][0] and "trained on the training text" in record["notes"][0]
        assert len(record["data_fingerprint"]) == 16 and record["sparsity"] == 0.75
        assert record["metric_name"] == ("accuracy" if name == "bert" else "perplexity")
        assert record["validation"] == "held out" and record["macs_attention"] > 0


def test_measured_again_it_agrees_with_the_record(runs, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for run, _ in runs.values():
        assert main("evaluate", [f"run={run}"]) == 0
        assert "agrees with the record" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_is_exported_opens_in_plain_transformers(runs, tmp_path, name):
    run = ExportedRun(runs[name][0])
    lines = dict(export(run, "safetensors", tmp_path / "folder"))
    assert "from_pretrained" in lines["opens with"]
    torch.save({"inputs": run.inputs, "logits": run.model(run.inputs).logits.detach()}, tmp_path / "expected.pt")
    kind = "AutoModelForSequenceClassification" if name == "bert" else "AutoModelForCausalLM"
    code = (
        "import sys, torch, transformers; seen = torch.load('expected.pt'); "
        f"model = transformers.{kind}.from_pretrained('folder', dtype=torch.float32).eval(); "
        "assert torch.equal(model(seen['inputs']).logits, seen['logits']); "
        "assert len(transformers.AutoTokenizer.from_pretrained('folder')) == model.config.vocab_size; "
        "assert not any(one.split('.')[0] == 'pdp' for one in sys.modules); "
        "share = max(float((p == 0).float().mean()) for p in model.parameters()); assert share > 0.5"
    )
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_onnx_takes_what_the_task_gives_and_measures_what_the_record_says(runs, tmp_path, name, capsys):
    words = [f"run={runs[name][0]}", "format=onnx", f"output={tmp_path}"]
    assert export_script.main(words) == 0
    assert "difference to torch" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    assert names == ["input_ids", "attention_mask", *(["token_type_ids"] if name == "bert" else [])]
    run = ExportedRun(runs[name][0])

    class Session(torch.nn.Module):
        """The exported model in the place of the transformer."""

        def forward(self, input_ids, attention_mask=None, token_type_ids=None):
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            if attention_mask is None:
                given["attention_mask"] = torch.ones_like(input_ids)
            feed = {key: given[key].numpy() for key in names}
            return SimpleNamespace(logits=torch.from_numpy(session.run(None, feed)[0]))

    # Batches of another size, texts of other lengths and padding; all of the test set.
    metrics = measure(run.task, Session(), run.task.evaluation_loader("test", 7, 0), SimpleNamespace(num_processes=1))
    assert metrics == pytest.approx(run.record.metrics, rel=1e-4)


def test_run_weights_of_tied_layers_are_stored_once_and_exported_for_both(runs, tmp_path):
    run = ExportedRun(runs["gpt2"][0])
    export(run, "safetensors", tmp_path)
    stored, kept = load_file(tmp_path / "model.safetensors"), load_file(runs["gpt2"][0] / "model.safetensors")
    assert ("lm_head.weight" in kept) + ("transformer.wte.weight" in kept) == 1
    assert "transformer.wte.weight" in stored and "lm_head.weight" not in stored
    embeddings = run.model.transformer.wte.weight
    assert run.model.lm_head.weight is embeddings and torch.equal(stored["transformer.wte.weight"], embeddings)
    assert not (embeddings == 0).any()
    for key, value in stored.items():
        if key in kept:
            assert torch.equal(value, kept[key]), key


def test_rates_fall_by_depth_and_biases_do_not_decay(runs):
    run = ExportedRun(runs["bert"][0])
    optimizer = make_optimizer(run.model, run.config.recipe)
    group_of = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    rate, named = run.config.recipe.lr, dict(run.model.named_parameters())
    for name, depth in (
        ("classifier.weight", 0),
        ("bert.pooler.dense.weight", 0),
        ("bert.encoder.layer.1.output.dense.weight", 1),
        ("bert.encoder.layer.0.output.dense.weight", 2),
        ("bert.embeddings.word_embeddings.weight", 3),
    ):
        assert group_of[id(named[name])]["lr"] == pytest.approx(rate * 0.9**depth), name
        assert group_of[id(named[name])]["weight_decay"] == 0.01
    for name in ("bert.encoder.layer.0.output.dense.bias", "bert.encoder.layer.0.output.LayerNorm.weight"):
        assert group_of[id(named[name])]["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)
    assert optimizer.param_groups[0]["lr"] == rate  # what history calls the rate
