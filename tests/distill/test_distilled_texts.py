"""Transformers with a teacher: hidden states against the models' own, the cache, tokenizers; POFA in two stages."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.distill.distillation import Distilled
from pdp.distill.teacher import Teacher, load_teacher, weights_digest
from pdp.errors import Refusal
from pdp.runs.record import read_record
from pdp.tasks import build_task
from pdp.training.assembly import make_accelerator, make_model
from pdp.training.export_run import ExportedRun, export

pytestmark = pytest.mark.language

BERT = [
    "model=bert_tiny",
    "model.sizes={hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64}",
    "data=grammar_nli",
    "debug=smoke",
    "device=cpu",
]
GPT2 = [
    "model=gpt2_tiny",
    "model.sizes={n_embd: 32, n_layer: 2, n_head: 2, n_positions: 32}",
    "data=text",
    "data.vocabulary=300",
    "debug=smoke",
    "device=cpu",
]
STATES = ["distill=teacher", "distill.hidden=0.5", "distill.attention=2"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of running text."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"{first} and {second} sat on a {third} .\n" for first in ("cats", "dogs", "we") for second in ("they", "you")
             for third in ("mat", "log", "chair")]  # fmt: skip
    for name, times in (("train", 20), ("test", 3)):
        (folder / f"{name}.txt").write_text("".join(lines * times))
    return f"data.root={folder}"


def the_run(folder: Path, method: str = "pdp") -> Path:
    (path,) = folder.glob(f"*-{method}-*/seed0")
    return path


def refused(capsys, *arguments: str) -> str:
    assert main("train", list(arguments)) == Refusal.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("command", [BERT, GPT2], ids=["bert", "gpt2"])
def test_states_are_compared_as_the_models_give_them_but_for_padding(command, text):
    config = compose([*command, *STATES, "sparsity=0.5", *([text] if command is GPT2 else [])])
    task = build_task(config)
    task.open_data()
    model = make_model(config, task).eval()
    torch.manual_seed(77)
    other = task.build_model().eval().requires_grad_(False)
    objective = Distilled(config, task, Teacher(other, "", weights_digest(other)), make_accelerator(config))
    batch = next(iter(task.train_loader(16, 0, "none", 0)))
    if command is BERT:  # half of the texts are shorter
        batch["attention_mask"][1::2, 7:] = 0
        batch["input_ids"][1::2, 7:] = task.tokenizer.pad_token_id
    loss = float(objective.loss(model, batch).detach())

    given = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch}
    seen = []
    for one in (model, other):
        one.set_attn_implementation("eager")
        with torch.no_grad():
            seen.append(one(**given, output_hidden_states=True, output_attentions=True))
    ours, theirs = seen
    lengths = batch["attention_mask"].sum(1).tolist() if "attention_mask" in batch else [config.data.context] * 16
    expected = 0.0
    for weight, name, count in ((0.5, "hidden_states", 3), (2.0, "attentions", 2)):
        pairs = list(zip(getattr(ours, name), getattr(theirs, name), strict=True))
        assert len(pairs) == count
        means = []
        for mine, its in pairs:
            squares = [
                (a[:length] - b[:length])
                if name == "hidden_states"
                else (a[:, :length, :length] - b[:, :length, :length])
                for a, b, length in zip(mine.double().numpy(), its.double().numpy(), lengths, strict=True)
            ]
            means.append(np.mean(np.concatenate([np.square(one).ravel() for one in squares])))
        expected += weight * np.mean(means)
    if command is BERT:
        mine, its, labels = ours.logits.double(), theirs.logits.double(), batch["label"]
    else:
        mine, its = (one.logits[:, :-1].double().flatten(0, 1) for one in seen)
        labels = batch["input_ids"][:, 1:].flatten()
    p = (its / 2).softmax(1)
    soft = 4 * float((p * (p.log() - (mine / 2).log_softmax(1))).sum(1).mean())
    expected += 0.05 * float(functional.cross_entropy(mine, labels)) + 0.95 * soft
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A folder with the dense run of BERT alone."""
    folder = tmp_path_factory.mktemp("dense")
    assert main("train", [*BERT, "method=dense", f"output_dir={folder}"]) == 0
    return folder


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "history.jsonl").read_text().splitlines()]


def test_cached_logits_of_texts_give_the_same_run(dense, tmp_path):
    runs = []
    for cache in ("none", "disk"):
        folder = tmp_path / cache
        shutil.copytree(dense, folder)
        taught = [*BERT, "sparsity=0.5", "distill=teacher", f"distill.cache={cache}", f"output_dir={folder}"]
        assert main("train", taught) == 0
        runs.append(the_run(folder))
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    weights = [load_file(run / "model.safetensors") for run in runs]
    # Texts are padded with other ones when the cache is filled, so sums differ in their last digits.
    assert all(torch.allclose(value, weights[1][key], atol=1e-4) for key, value in weights[0].items())


def test_running_text_is_taught_by_states_and_has_no_row_for_each_sample_to_be_cached(text, tmp_path, capsys):
    taught = [*GPT2, text, "sparsity=0.5", *STATES, f"output_dir={tmp_path}"]
    command = re.search(r"python train\.py .*", refused(capsys, *taught))[0]
    assert main("train", shlex.split(command)[2:]) == 0
    assert main("train", taught) == 0
    record = read_record(the_run(tmp_path))
    assert (record.distillation["hidden"], record.distillation["attention"]) == (0.5, 2.0)
    assert record.distillation["weight"] == 0.95 and record.sparsity == pytest.approx(0.5, abs=1e-4)
    capsys.readouterr()
    line = refused(
        capsys, *GPT2, text, "sparsity=0.5", "distill=teacher", "distill.cache=disk", f"output_dir={tmp_path}"
    )
    assert "distill.cache=none" in line


def test_a_teacher_of_another_size_reads_with_the_tokenizer_that_both_are_given(dense, tmp_path):
    teacher = tmp_path / "teacher"
    export(ExportedRun(the_run(dense, "dense")), "safetensors", teacher)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dogs", "cats", "all", "no", "some", "can", "not", "every"]
    (tokenizer / "vocab.txt").write_text("\n".join(words) + "\n")
    small = [
        *BERT,
        "model.sizes={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 32}",
    ]
    chosen = [
        *small,
        "sparsity=0.5",
        "distill=teacher",
        f"distill.teacher={teacher}",
        f"output_dir={tmp_path / 'runs'}",
    ]
    config = compose([*chosen, f"data.tokenizer={teacher}"])
    task = build_task(config)
    task.open_data()
    loaded = load_teacher(config, task).model
    stored = load_file(teacher / "model.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in loaded.state_dict().items() if key in stored)
    # Another tokenizer for the student alone: the same words under other numbers.
    config = compose(chosen)
    task = build_task(compose([*small, "prune=none", f"data.tokenizer={tokenizer}"]))
    task.open_data()
    with pytest.raises(Refusal, match="other tokens than the student.*data.tokenizer="):
        load_teacher(config, task)


def test_pofa_prunes_with_a_teacher_and_its_zeros_stay_while_another_run_fine_tunes(dense, tmp_path, capsys):
    shutil.copytree(dense, tmp_path / "runs")
    common = [*BERT, f"output_dir={tmp_path / 'runs'}", "method=pofa"]
    assert main("train", [*common, "sparsity=0.75", "distill=teacher"]) == 0
    first = the_run(tmp_path / "runs", "pofa")
    record = read_record(first)
    assert (record.method_options["stage"], record.distillation["weight"]) == ("prune", 0.9)
    assert record.distillation["weight_source"] == "ours" and record.sparsity == pytest.approx(0.75, abs=1e-3)
    folder = tmp_path / "pruned"
    export(ExportedRun(first), "safetensors", folder)
    capsys.readouterr()
    assert main("train", [*common, "method.stage=finetune", f"model.pretrained={folder}"]) == 0
    (second,) = set((tmp_path / "runs").glob("*-pofa-*/seed0")) - {first}
    again = read_record(second)
    assert again.sparsity == record.sparsity and again.method_options["stage"] == "finetune"
    before, after = (load_file(run / "model.safetensors") for run in (first, second))
    changed = 0
    for key, value in before.items():
        if "encoder" in key and value.dim() == 2:
            assert torch.equal(value == 0, after[key] == 0)
            changed += not torch.equal(value, after[key])
    assert changed == 12  # and the rest was trained
    # The folder enters by what it holds, and no record says where it lay.
    text = (second / "record.json").read_text()
    assert str(tmp_path) not in text and "pruned" in again.pretrained
    shutil.copytree(folder, tmp_path / "moved")
    capsys.readouterr()
    assert main("train", [*common, "method.stage=finetune", f"model.pretrained={tmp_path / 'moved'}"]) == 0
    assert "this run is finished" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["hard", "soft"])
def test_movement_on_sentences(variant, tmp_path):
    sparsity = ["sparsity=0.75"] if variant == "hard" else []
    command = [*BERT, "method=movement", f"method.variant={variant}", *sparsity, f"output_dir={tmp_path}"]
    assert main("train", command) == 0
    run = the_run(tmp_path, "movement")
    record = read_record(run)
    weights = [value for key, value in load_file(run / "model.safetensors").items() if "encoder" in key]
    weights = [value for value in weights if value.dim() == 2]
    zeros, scores = (sum(map(count, weights)) for count in (lambda one: int((one == 0).sum()), torch.numel))
    assert len(weights) == 12 and record.extra_parameters >= scores
    assert record.sparsity == zeros / scores
    if variant == "hard":
        assert record.sparsity == pytest.approx(0.75, abs=1e-3)
