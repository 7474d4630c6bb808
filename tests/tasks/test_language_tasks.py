"""Language tasks: perplexity against a direct computation, batches, tokenizers, the architecture of the models."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import opened, text_config, write_glue
from torch import nn
from torch.nn import functional

from pdp.config.compose import compose
from pdp.cost import count_macs, count_parameters
from pdp.errors import Refusal
from pdp.patterns.nm import input_dim
from pdp.survey import find_layers
from pdp.tasks import build_task
from pdp.tasks.text_loading import LengthGroupedSampler, measured_windows, training_windows
from pdp.training.assembly import make_model, make_pruner
from pdp.training.evaluation import measure

pytestmark = pytest.mark.language

VERSE = ["the cat sat on the mat .\n", "\n", "a dog sat on a log and sang a song .\n"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    for name, times in (("train", 60), ("valid", 9), ("test", 7)):
        (root / f"{name}.txt").write_text("".join(VERSE * times), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def language(folder):
    chosen = ["data=text", f"data.root={folder}", "data.context=24", "data.vocabulary=300", "data.stride=10"]
    return opened(*chosen, model="gpt2_tiny")


class Alone:
    """As much of accelerate as measuring needs."""

    num_processes = 1


@torch.no_grad()
def test_perplexity_is_that_of_a_direct_computation(language, folder):
    model = make_model(language.config, language).eval()
    found = measure(language, model, language.evaluation_loader("test", 4, 0), Alone())
    lines = [line for line in (folder / "test.txt").read_text().splitlines(keepends=True) if line.strip()]
    ids = [token for line in lines for token in language.tokenizer(line)["input_ids"]]
    # Token by token: each by the window it is counted in, the first whose end lies behind it.
    total = 0.0
    for position in range(1, len(ids)):
        start = 0 if position < 24 else math.ceil((position - 23) / 10) * 10
        context = torch.tensor([ids[start:position]])
        logits = model(context).logits[0, -1].double()
        total -= float(functional.log_softmax(logits, 0)[ids[position]])
    assert found["loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-5)
    words = len((folder / "test.txt").read_text().split())
    assert found["perplexity_per_word"] == pytest.approx(math.exp(total / words), rel=1e-5)


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(100, 10, 9), (101, 10, 3), (7, 10, 9), (10, 10, 1), (11, 10, 5)]
)
def test_every_token_but_the_first_is_counted_once(length, context, stride):
    windows = measured_windows(np.arange(length), context, stride, 0, words=1)
    seen = [position for start, end, counted in zip(windows.starts, windows.ends, windows.counted, strict=True)
            for position in range(max(start + 1, counted), end)]  # fmt: skip
    assert seen == list(range(1, length)) and windows.predicted == length - 1
    assert all(0 < end - start <= context for start, end in zip(windows.starts, windows.ends, strict=True))


def test_training_windows_lie_end_to_end(language):
    windows = training_windows(np.arange(95), 10, 0)
    batch = windows.__getitems__([(0, 8), (0, 0)])
    assert len(windows) == 9 and batch["input_ids"].tolist() == [list(range(80, 90)), list(range(10))]
    assert "labels" not in batch
    model = make_model(language.config, language)
    batch = next(iter(language.train_loader(4, 0, "none", 0)))
    outputs = language.outputs(model, batch, detailed=True)
    assert outputs.logits.shape == (4 * 23, len(language.tokenizer))
    plain = functional.cross_entropy(
        model(batch["input_ids"]).logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
    )
    assert torch.allclose(language.loss(model, batch, 0.0), plain)
    assert outputs.hidden[-1].shape == (4, 24, 16) and outputs.attentions[0].shape == (4, 2, 24, 24)
    assert torch.allclose(outputs.attentions[0].sum(-1), torch.ones(4, 2, 24))


@pytest.fixture(scope="module")
def classified():
    return opened("data.limit=60", "data.length_grouping=true")


def test_padding_changes_nothing(classified):
    model = make_model(classified.config, classified).eval()
    batch = next(iter(classified.evaluation_loader("test", 8, 0)))
    together = classified.outputs(model, batch, detailed=True)
    texts = classified._parts["test"]
    for row in range(8):
        alone = texts.__getitems__([(0, row)])
        assert torch.allclose(classified.outputs(model, alone).logits[0], together.logits[row], atol=1e-5)
    assert together.logits.shape == (8, 3) and len(together.hidden) == 2 and len(together.attentions) == 1
    wider = {name: functional.pad(values, (0, 5)) if values.dim() == 2 else values for name, values in batch.items()}
    assert torch.allclose(classified.outputs(model, wider).logits, together.logits, atol=1e-5)


def test_batches_of_like_length_hold_every_text_once_in_an_order_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    sampler = LengthGroupedSampler(lengths, 8, seed=1)

    def batches(epoch, first=0):
        sampler.set_epoch(epoch, first)
        return [[index for _, index in batch] for batch in sampler]

    first = batches(0)
    everything = [index for batch in first for index in batch]
    assert len(first) == 125 and len(set(everything)) == 1000
    spread = np.mean([np.ptp(lengths[batch]) for batch in first])
    assert spread < 0.25 * np.mean([np.ptp(lengths[list(range(k, k + 8))]) for k in range(0, 1000, 8)])
    assert batches(0) == first and batches(0, 100) == first[100:] and batches(1) != first
    order = [np.mean(lengths[batch]) for batch in first]
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.3  # the batches themselves are shuffled


@pytest.mark.parametrize(
    ("model", "data", "parameters", "macs", "attention"),
    [
        ("bert_base", ["data=glue", "data.task=mnli"], 109_482_240, 10_871_635_968, 301_989_888),
        ("gpt2", ["data=wikitext"], 124_439_808, 86_973_087_744, 19_327_352_832),
    ],
)
def test_published_counts(model, data, parameters, macs, attention):
    config = compose([f"model={model}", *data, "model.pretrained=false", "sparsity=0.9", "dry_run=true"])
    task = build_task(config)
    network = task.build_model()
    body = network.base_model if model == "bert_base" else network  # published without a classifier
    assert count_parameters(body)[0] == parameters
    layers = find_layers(network, own_exclude=task.exclude)
    assert sum(layer.weight.numel() for layer in layers) == 84_934_656
    assert not [
        layer.name for layer in layers if any(word in layer.name for word in ("pooler", "classifier", "head", "wte"))
    ]
    frame = count_macs(network, task.example_input())
    prunable = frame[frame.name.isin([layer.name for layer in layers])]
    assert int(prunable.macs.sum()) == macs
    assert frame.attrs["macs_attention"] == attention


@pytest.mark.parametrize("prune", [["prune=random", "sparsity=0.75"], ["prune=nm"]])
@pytest.mark.parametrize("method", ["pdp", "gmp"])
def test_masks_on_conv1d_lie_along_its_inputs_and_tied_embeddings_stay(language, prune, method):
    chosen = [*prune, f"method={method}", "schedule.warmup=0", "schedule.ramp=1ep", "recipe.epochs=1"]
    config = compose(["model=gpt2_tiny", "data=text", "data.root=/", *chosen])
    torch.manual_seed(0)
    task = language
    model = make_model(task.config, task)
    before = model.transformer.wte.weight.detach().clone()
    pruner = make_pruner(config, task, model, steps_per_epoch=1)
    assert {layer.kind for layer in pruner.layers} == {"Conv1D"} and len(pruner.layers) == 4
    stored = {layer.name: layer.weight.detach().clone() for layer in pruner.layers}
    pruner.start_epoch(0)
    pruner.step()
    pruner.finalize()
    for layer in pruner.layers:
        module, weight = model.get_submodule(layer.name), model.get_submodule(layer.name).weight
        assert weight.shape[1] == module.nf and input_dim(layer) == 0  # (in, out)
        kept = weight != 0
        if prune == ["prune=nm"]:
            # Of each 4 consecutive inputs of one output, the 2 largest stay.
            for output in range(weight.shape[1]):
                for group in range(0, weight.shape[0], 4):
                    column = stored[layer.name][group : group + 4, output].abs()
                    assert kept[group : group + 4, output].nonzero().flatten().tolist() == sorted(
                        column.topk(2).indices.tolist()
                    )
    share = sum(int((model.get_submodule(one.name).weight == 0).sum()) for one in pruner.layers)
    assert share / sum(one.weight.numel() for one in pruner.layers) == (0.5 if prune == ["prune=nm"] else 0.75)
    assert model.lm_head.weight is model.transformer.wte.weight and torch.equal(model.transformer.wte.weight, before)
    assert "lm_head" not in {layer.name for layer in pruner.layers}


def test_a_tokenizer_is_trained_the_same_way_in_every_process(tmp_path):
    code = (
        "from pdp.tasks.text_tokenizer import *; t = ['a cat sat on the mat', 'some dogs can sing songs'] * 20;"
        "print(sorted(train_word_pieces(t, 300).get_vocab().items()), train_byte_pairs(t, 290)(t[0])['input_ids'])"
    )
    root = Path(__file__).parents[2]
    outputs = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(root)}, cwd=tmp_path,
                       capture_output=True, text=True, check=True).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(outputs) == 1 and len(outputs.pop()) > 100


def test_vocabularies_and_tokenizers_from_folders(tmp_path, classified, language):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "can", "every", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    for named in (tmp_path, tmp_path / "vocab.txt"):
        task = opened("data.limit=9", f"data.tokenizer={named}")
        assert len(task.tokenizer) == 9 and task.tokenizer("Dogs can fly")["input_ids"] == [2, 5, 8, 6, 1, 3]
    saved = tmp_path / "saved"
    language.tokenizer.save_pretrained(saved)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (saved / name).is_file()
    again = opened("data=text", f"data.root={tmp_path}", "data.train_files=[vocab.txt]", "data.test_files=[*.json]",
                   f"data.tokenizer={saved}", "data.context=4", "data.validation=0", model="gpt2_tiny") if (
        (tmp_path / "x.json").write_text("a dog sat\n")) else None  # fmt: skip
    assert again.tokenizer("a dog sat")["input_ids"] == language.tokenizer("a dog sat")["input_ids"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="data.tokenizer"):
        opened("data.limit=9", f"data.tokenizer={tmp_path / 'empty'}")


def test_docstrings_of_the_standard_library():
    task = opened("data.context=64", model="gpt2_tiny")
    assert "docstrings of Python's own standard library" in task.data_note and task.config.data.unasked
    parts = {name: task.tokenizer.decode(task._parts[name].ids) for name in ("train", "validation", "test")}
    assert all(len(text) > 30_000 for text in parts.values())
    import json

    homes = [
        name for name, text in parts.items() if " ".join(json.dumps.__doc__.split()[:12]) in " ".join(text.split())
    ]
    assert len(homes) == 1  # whole modules in one part


def test_the_banner_says_that_nobody_asked_for_the_grammar(classified):
    assert classified.data_note.startswith("No data was named")
    assert "No data" not in opened("data=grammar_nli", "data.limit=9").data_note
    assert classified.sizes() == {"train": 60, "validation": 60, "test": 60}


def test_a_score_is_learnt_by_squared_error(tmp_path):
    task = opened("data=glue", "data.task=stsb", f"data.root={write_glue(tmp_path / 'glue')}")
    model = make_model(task.config, task)
    batch = next(iter(task.train_loader(5, 0, "none", 0)))
    model.eval()
    logits = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}).logits
    assert logits.shape == (5, 1)
    assert torch.allclose(task.loss(model, batch, 0.0), ((logits[:, 0] - batch["label"]) ** 2).mean().float())
    assert task.metric_name == "pearson"


def test_a_checkpoint_gives_weights_sizes_and_tokenizer(tmp_path, classified):
    torch.manual_seed(5)
    first = make_model(classified.config, classified)
    first.save_pretrained(tmp_path / "checkpoint")
    classified.tokenizer.save_pretrained(tmp_path / "checkpoint")
    chosen = ["model=huggingface", "model.name=mine", f"model.pretrained={tmp_path / 'checkpoint'}"]
    task = build_task(compose([*chosen, "data=grammar_nli", "data.limit=20", "prune=none"]))
    task.open_data()
    model = task.build_model()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in first.state_dict().items())
    assert "the checkpoint's tokenizer" in task.data_note and not task.notes
    # As a finished run is measured: the sizes still come from the checkpoint, the weights do not.
    task.config.model.pretrained = "false"
    again = task.build_model().state_dict()
    assert {key: value.shape for key, value in again.items()} == {
        key: value.shape for key, value in first.state_dict().items()
    }
    assert not torch.equal(again["bert.pooler.dense.weight"], first.state_dict()["bert.pooler.dense.weight"])
    # As a body under a new head, the head is new and the run says so.
    root = write_glue(tmp_path / "glue")
    task = build_task(compose([*chosen, "data=glue", "data.task=sst2", f"data.root={root}", "prune=none"]))
    task.open_data()
    model = task.build_model()
    assert model.classifier.weight.shape == (2, 16) and "classifier.weight" in task.notes[0]
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, first.bert.embeddings.word_embeddings.weight)
    assert model.config.id2label == {0: "negative", 1: "positive"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.arguments={hidden_size: 15}"], "model.arguments hidden_size"),
        (["model.arguments={nothing_known: 1, num_labels: 4}"], "model.arguments.num_labels"),
        (["data.max_length=600"], "data.max_length=600 512"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused(overrides, words):
    task = build_task(text_config(*overrides))
    with pytest.raises(Refusal) as caught:
        task.build_model()
    assert all(word in str(caught.value) for word in words.split()) and "\n" not in str(caught.value)


def test_pretrained_without_network_is_refused_and_a_dry_run_is_not(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    task = build_task(text_config("model.pretrained=true"))
    with pytest.raises(Refusal, match="without network give") as caught:
        task.open_data()
    assert "\n" not in str(caught.value)
    with pytest.raises(Refusal, match="model.pretrained=false"):
        task.build_model()
    task = build_task(text_config("model.pretrained=true", "dry_run=true"))
    assert isinstance(task.build_model(), nn.Module) and "random" in task.notes[0]


def test_gradient_checkpointing_changes_no_gradient(classified):
    batch = next(iter(classified.train_loader(8, 0, "none", 0)))
    gradients = []
    for checkpointing in ("false", "true"):
        torch.manual_seed(0)
        config = text_config(f"recipe.gradient_checkpointing={checkpointing}", "data.limit=60",
                             "model.arguments={hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}")  # fmt: skip
        task = build_task(config)
        task.open_data()
        model = task.build_model()
        assert model.is_activation_checkpointing == (checkpointing == "true")
        task.loss(model, batch, 0.0).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def guide(model, ids, context, stride):
    """Hugging Face's guide to the perplexity of models of fixed length, token by token: the sum and how many."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        window = torch.tensor([ids[begin:end]])
        logits = model(window).logits[0].double().log_softmax(1)
        labels = window[0].clone()
        labels[: -(end - before)] = -100
        for place in range(1, end - begin):
            if labels[place] != -100:
                total, count = total - float(logits[place - 1, labels[place]]), count + 1
        before = end
        if end == len(ids):
            break
    return total, count


WIKI = " \n = A title = \n \n The cat sat on the mat . It was <unk> .\n \n = = Part = = \n \n A dog sang .\n"


@pytest.mark.parametrize(("stride", "used"), [("null", 12), ("5", 5), ("12", 12)])
def test_the_protocol_of_hugging_faces_guide(tmp_path, stride, used):
    for part in ("train", "valid", "test"):
        (tmp_path / f"wiki.{part}.tokens").write_text(WIKI * {"train": 20, "valid": 2, "test": 3}[part], "utf-8")
    chosen = ["data=wikitext", f"data.root={tmp_path}", "data.context=12", "data.vocabulary=300"]
    task = opened(*chosen, "data.protocol=huggingface", f"data.stride={stride}", model="gpt2_tiny")
    plain = opened(*chosen, model="gpt2_tiny")
    assert task.data_fingerprint != plain.data_fingerprint and task.stride == used
    # As the hub's data set gives its rows: a line with its end, or nothing.
    rows = [line if line.strip() else "" for line in (WIKI * 3).splitlines(keepends=True)]
    text = "\n\n".join(rows)
    ids = task.tokenizer(text)["input_ids"]
    assert len(ids) > len(plain.tokenizer("".join(row for row in rows if row))["input_ids"])
    model = make_model(task.config, task).eval()
    found = measure(task, model, task.evaluation_loader("test", 4, 0), Alone())
    total, count = guide(model, ids, 12, used)
    assert task.evaluation_loader("test", 4, 0).dataset.predicted == count
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-5)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(total / len(text.split())), rel=1e-5)


def test_bits_per_byte_of_the_usual_protocol_and_none_of_a_part(language, folder):
    model = make_model(language.config, language).eval()
    found = measure(language, model, language.evaluation_loader("test", 4, 0), Alone())
    lines = [line for line in (folder / "test.txt").read_text().splitlines(keepends=True) if line.strip()]
    tokens = language.evaluation_loader("test", 4, 0).dataset.predicted
    bits = found["loss"] * tokens / math.log(2) / len("".join(lines).encode())
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-9)
    chosen = ["data=text", f"data.root={folder}", "data.context=24", "data.vocabulary=300", "data.limit=2"]
    part = opened(*chosen, model="gpt2_tiny")
    assert "bits_per_byte" not in measure(part, model, part.evaluation_loader("test", 4, 0), Alone())


def test_strides_that_leave_tokens_out_and_unknown_protocols_are_refused(folder):
    chosen = ["data=text", f"data.root={folder}", "data.context=24"]
    for words, told in (
        (["data.stride=24"], "must be below data.context=24"),
        (["data.protocol=huggingface", "data.stride=25"], "tokens would be left out"),
        (["data.protocol=hf"], "data.protocol=hf: no such choice"),
    ):
        with pytest.raises(Refusal, match=told):
            opened(*chosen, *words, model="gpt2_tiny")
