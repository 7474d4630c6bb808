"""Folders as people have them: no tokenizer, odd ones, heads in another order, few positions, encoder-decoders."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.tasks import build_task
from pdp.tasks.grammar_nli import LABELS
from pdp.tasks.text_tokenizer import load_tokenizer, train_byte_pairs, train_word_pieces
from pdp.training.assembly import make_model

pytestmark = pytest.mark.language

WORDS = ["every dog is an animal", "some birds do not sing", "no cat that sings sleeps"] * 3
SIZES = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}  # fmt: skip
SIZES |= dict.fromkeys(("roberta", "mpnet", "electra", "xlm-roberta"), SIZES["bert"]) | {
    "opt": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
    }
}
PIECES = train_word_pieces(WORDS, 400)
TEXTS = Path(tempfile.mkdtemp(prefix="pdp-texts-"))
WIDE = 60  # tokens embedded beyond the tokenizer's


@pytest.fixture(scope="module", autouse=True)
def texts():
    for part in ("train", "test"):
        (TEXTS / f"{part}.txt").write_text("every dog is an animal\n" * 40, encoding="utf-8")
    yield
    shutil.rmtree(TEXTS)


def folder_of(place, kind, tokenizer=PIECES, causal=False, **values):
    """A checkpoint as save_pretrained leaves it, with its tokenizer where there is one."""
    names = {"vocab_size": len(tokenizer or PIECES) + WIDE, "pad_token_id": 0, **SIZES[kind], **values}
    shape = transformers.AutoConfig.for_model(kind, **names)
    made = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    made.from_config(shape).save_pretrained(place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    return place


def words_of(place, *more, data="grammar_nli"):
    named = {"grammar_nli": ["data.max_length=16"], "text": [f"data.root={TEXTS}", "data.context=16"]}[data]
    return ["model=huggingface", "model.name=x", f"model.pretrained={place}", f"data={data}", "data.limit=12",
            "data.validation=0", *named, "method=dense", *more]  # fmt: skip


def opened(place, *more, data="grammar_nli"):
    config = compose(words_of(place, *more, data=data))
    task = build_task(config)
    task.open_data()
    return task, make_model(config, task).eval()


def logits(task, model):
    batch = next(iter(task.evaluation_loader("test", 6, 0)))
    with torch.no_grad():
        return task.outputs(model, batch).logits


def test_a_folder_without_a_tokenizer_is_refused_and_takes_one_that_is_named(tmp_path):
    place = folder_of(tmp_path / "m", "bert", tokenizer=None)
    with pytest.raises(Refusal, match=r"holds no tokenizer.*give data\.tokenizer="):
        opened(place)
    with pytest.raises(Refusal, match="holds no tokenizer"):
        opened(folder_of(tmp_path / "g", "gpt2", tokenizer=None, causal=True), data="text")
    PIECES.save_pretrained(tmp_path / "t")
    task, model = opened(place, f"data.tokenizer={tmp_path / 't'}", "model.head=new")
    assert logits(task, model).isfinite().all()
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(Refusal, match="holds no tokenizer"):
        opened(place)


def test_a_vocabulary_of_another_language_or_of_special_tokens_alone_is_refused(tmp_path):
    greek = train_word_pieces(["αυτο ειναι ενα κειμενο χωρις αγγλικα"] * 3, 400)
    with pytest.raises(Refusal, match=r"does not know .*% of the text's tokens.*data\.tokenizer="):
        opened(folder_of(tmp_path / "m", "bert", greek))
    empty = transformers.BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4})
    with pytest.raises(Refusal, match="special tokens alone"):
        opened(folder_of(tmp_path / "e", "bert", empty))


def test_a_tokenizer_that_numbers_tokens_otherwise_than_the_checkpoint_is_refused(tmp_path):
    place = folder_of(tmp_path / "m", "bert")
    train_word_pieces(["other words here and there", *WORDS], 400).save_pretrained(tmp_path / "t")
    with pytest.raises(Refusal, match="is not the tokenizer of"):
        opened(place, f"data.tokenizer={tmp_path / 't'}")
    PIECES.save_pretrained(tmp_path / "same")
    opened(place, f"data.tokenizer={tmp_path / 'same'}")


def bare_tokenizer():
    """A byte-level tokenizer that says nothing of special tokens."""
    made = train_byte_pairs(WORDS, 300)
    text = json.loads(made.backend_tokenizer.to_str())
    text["added_tokens"] = []
    vocabulary = {f"Ġ{key}" if key == "<|endoftext|>" else key: value for key, value in text["model"]["vocab"].items()}
    text["model"]["vocab"] = vocabulary
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(text)))


def test_without_pad_eos_and_unk_running_text_works_and_texts_of_several_lengths_are_refused(tmp_path):
    bare = bare_tokenizer()
    assert (bare.pad_token, bare.eos_token, bare.unk_token) == (None, None, None)
    task, model = opened(folder_of(tmp_path / "g", "gpt2", bare, causal=True, pad_token_id=None), data="text")
    assert logits(task, model).isfinite().all()
    with pytest.raises(Refusal, match="no token to pad with"):
        opened(folder_of(tmp_path / "m", "gpt2", bare, num_labels=3))


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.txt"])
def test_one_file_is_enough(tmp_path, kept):
    place = folder_of(tmp_path / "m", "bert", num_labels=3)
    PIECES.save_pretrained(place)
    ordered = sorted(PIECES.get_vocab(), key=PIECES.get_vocab().get)
    (place / "vocab.txt").write_text("\n".join(ordered) + "\n", encoding="utf-8")
    for name in {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"} - {kept}:
        (place / name).unlink(missing_ok=True)
    for one in (place, place / kept):
        made = load_tokenizer(str(one), "data.tokenizer")
        assert made("some birds")["input_ids"] == PIECES("some birds")["input_ids"]
        assert made.pad_token_id == 0
    task, model = opened(place)
    assert logits(task, model).isfinite().all()


def test_a_sentencepiece_model_that_cannot_be_read_is_one_line(tmp_path):
    place = folder_of(tmp_path / "m", "t5", tokenizer=None, num_labels=3)
    (place / "spiece.model").write_bytes(b"no model")
    with pytest.raises(Refusal, match=r"model\.pretrained=.*no tokenizer could be had") as caught:
        opened(place)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_beyond_the_embedding_is_refused_and_gaps_count(tmp_path):
    with pytest.raises(Refusal, match=r"numbers .* tokens, the checkpoint .* embeds 40"):
        opened(folder_of(tmp_path / "m", "bert", vocab_size=40))
    gaps = dict(PIECES.get_vocab())
    gaps["dog"] = 5000
    with pytest.raises(Refusal, match="numbers 5,001 tokens"):
        opened(folder_of(tmp_path / "g", "bert", transformers.BertTokenizerFast(vocab=gaps)))


def test_lengths_and_sides_of_a_tokenizer_decide_nothing(tmp_path):
    other = train_word_pieces(WORDS, 400)
    other.model_max_length, other.padding_side = 4, "left"
    plain = opened(folder_of(tmp_path / "m", "bert", num_labels=3))[0]
    task, model = opened(folder_of(tmp_path / "o", "bert", other, num_labels=3))
    assert task.data_fingerprint == plain.data_fingerprint
    assert logits(task, model).isfinite().all()
    assert task.tokenizer.own_max_length == 4


ORDERS = [
    {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"},
    {0: "Neutral", 1: "entailment ", 2: "contradiction"},
]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "bart"])
@pytest.mark.parametrize("theirs", ORDERS, ids=["reversed", "turned"])
def test_a_head_in_another_order_is_measured_by_the_names_of_its_classes(tmp_path, kind, theirs):
    ends = train_word_pieces(WORDS, 400)
    place = folder_of(tmp_path / kind, kind, ends, num_labels=3, eos_token_id=3)
    task, model = opened(place)
    before = logits(task, model)
    shape = json.loads((place / "config.json").read_text())
    shape["id2label"] = {str(number): name for number, name in theirs.items()}
    shape["label2id"] = {name: number for number, name in theirs.items()}
    (place / "config.json").write_text(json.dumps(shape))
    again, aligned = opened(place)
    places = [[name.strip().lower() for name in theirs.values()].index(one) for one in LABELS]
    torch.testing.assert_close(logits(again, aligned), before[:, places])
    assert "put in the data's order" in " ".join(again.notes)
    assert [aligned.config.id2label[number] for number in range(3)] == list(LABELS)


@pytest.mark.parametrize("named", [None, {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, "short"])
def test_heads_without_names_or_of_another_size(tmp_path, named):
    place = folder_of(tmp_path / "m", "bert", num_labels=5 if named == "short" else 3)
    if named != "short":
        shape = json.loads((place / "config.json").read_text())
        shape.pop("id2label", None), shape.pop("label2id", None)
        shape |= {"id2label": named} if named else {"num_labels": 3}
        (place / "config.json").write_text(json.dumps(shape))
    task, model = opened(place)
    assert logits(task, model).shape[1] == 3
    assert any("starts random" in note for note in task.notes) == (named == "short")


def test_a_head_of_other_classes_is_refused_or_made_new(tmp_path):
    place = folder_of(tmp_path / "m", "bert", num_labels=3, id2label={0: "neg", 1: "so so", 2: "pos"})
    with pytest.raises(Refusal, match=r"head for neg, so so, pos, .* entailment, .*: give model\.head=new"):
        opened(place)
    task, model = opened(place, "model.head=new")
    stored = transformers.AutoModelForSequenceClassification.from_pretrained(place)
    assert not torch.equal(model.classifier.weight, stored.classifier.weight)
    assert any("model.head=new" in note for note in task.notes)


TABLES = [("bert", 16), ("roberta", 14), ("mpnet", 14), ("xlm-roberta", 14), ("electra", 16), ("bart", 16), ("gpt2", 16),
          ("opt", 16)]  # fmt: skip


@pytest.mark.parametrize(("kind", "longest"), TABLES)
def test_the_longest_text_fits_and_a_token_more_is_refused(tmp_path, kind, longest):
    size = {"gpt2": {"n_positions": 16}}.get(kind, {"max_position_embeddings": 16})
    values = {"pad_token_id": 1} if kind in ("roberta", "mpnet", "xlm-roberta", "bart") else {}
    causal = kind in ("gpt2", "opt")
    vocabulary = {token: number for number, token in enumerate(["[CLS]", "[PAD]"])} if values else None
    tokenizer = PIECES
    if vocabulary is not None:
        ordered = ["[CLS]", "[PAD]", *[one for one in PIECES.get_vocab() if one not in ("[CLS]", "[PAD]")]]
        tokenizer = transformers.BertTokenizerFast(vocab={token: number for number, token in enumerate(ordered)})
    more = {} if causal else {"num_labels": 3}
    place = folder_of(tmp_path / kind, kind, tokenizer, causal, **size, **values, **more)
    key, data = ("data.context", "text") if causal else ("data.max_length", "grammar_nli")
    task, model = opened(place, f"{key}={longest}", data=data)
    tokens = torch.full((2, longest), 7)
    if kind == "bart":
        tokens[:, -1] = model.config.eos_token_id
    with torch.no_grad():
        model(input_ids=tokens)
    with pytest.raises(Refusal, match=rf"{key}={longest + 1} is more than the {longest} positions"):
        opened(place, f"{key}={longest + 1}", data=data)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("random", [False, True])
def test_encoder_decoders_classify(tmp_path, kind, random):
    place = folder_of(tmp_path / kind, kind, PIECES, num_labels=3)
    if random:
        shape = transformers.AutoConfig.from_pretrained(place)
        sizes = ",".join(f"{key}: {value}" for key, value in SIZES[kind].items())
        config = compose(
            ["model=huggingface", "model.name=x", "model.pretrained=false", f"model.architecture={kind}",
             f"model.sizes={{{sizes}}}", "data=grammar_nli", "data.max_length=16", "data.limit=12", "method=dense"]
        )  # fmt: skip
        task = build_task(config)
        task.open_data()
        model = make_model(config, task).eval()
        assert shape.model_type == kind
    else:
        task, model = opened(place)
    assert logits(task, model).isfinite().all()
    with torch.no_grad():
        assert model(task.example_input()).logits.shape == (1, 3)
    bare = train_byte_pairs(WORDS, 300)
    with pytest.raises(Refusal, match="reads its class at the end of a text"):
        opened(folder_of(tmp_path / "bare", kind, bare, num_labels=3))


def test_padding_with_the_end_of_texts_decides_nothing_of_a_causal_classifier(tmp_path):
    pieces = train_byte_pairs(WORDS, 300)
    assert pieces.pad_token == pieces.eos_token
    task, model = opened(folder_of(tmp_path / "m", "gpt2", pieces, num_labels=3, pad_token_id=None))
    batch = next(iter(task.evaluation_loader("test", 6, 0)))
    together = task.outputs(model, batch).logits.detach()
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1 or int(lengths.max()) == 16
    for row, length in enumerate(lengths):
        alone = {key: value[row : row + 1, :length] if value.dim() > 1 else value for key, value in batch.items()}
        torch.testing.assert_close(task.outputs(model, alone).logits.detach()[0], together[row], rtol=1e-4, atol=1e-5)
    assert np.isfinite(together.numpy()).all()
