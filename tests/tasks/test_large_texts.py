"""Texts that are read in pieces: the lines, tokens, words, windows and fingerprint of a small text, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.errors import Refusal
from pdp.tasks import build_task, corpora, text_streams, text_tokenizer, token_store
from pdp.tasks.mapped_tokens import MappedTokens
from pdp.tasks.text_streams import FileText

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "cat", "", "sat", "on\ta", "mat,", "12", "times;", "it's", "café", "北京", "<|endoftext|>", "--", "x=y"]


def made(seed: int, lines: int) -> str:
    draw = np.random.default_rng(seed)
    rows = [" ".join(draw.choice(WORDS, draw.integers(0, 30))) for _ in range(lines)]
    return "".join(
        row + ending for row, ending in zip(rows, draw.choice(["\n", "\r\n", "\r", "\n\n"], lines), strict=True)
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PDP_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "train.txt").write_text(made(1, 400) + made(2, 1) * 2000, encoding="utf-8", newline="")
    (tmp_path / "test.txt").write_text(made(3, 60), encoding="utf-8", newline="")
    return tmp_path


def in_pieces(monkeypatch, block=700, longest=64, read=100):
    monkeypatch.setattr(corpora, "LARGE", 0)
    monkeypatch.setattr(text_streams, "BLOCK", block)
    monkeypatch.setattr(text_streams, "LONGEST", longest)
    monkeypatch.setattr(text_streams, "_READ", read)


def opened(folder, *more):
    given = [
        "model=gpt2_tiny",
        "prune=none",
        "data=text",
        f"data.root={folder}",
        "data.context=16",
        "data.vocabulary=300",
    ]
    config = compose([*given, *more])
    task = build_task(config)
    task.open_data()
    return config, task


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from(list("ab \n\r\t\u00a0\u2028\x0b\x1cé北")), max_size=120),
    st.integers(1, 40),
    st.integers(2, 20),
    st.integers(1, 9),
)
def test_the_pieces_are_the_lines_of_a_text_in_memory(tmp_path_factory, text, block, longest, read):
    path = tmp_path_factory.mktemp("lines") / "text"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, block, longest, read)
        pieces = list(FileText([path, path]))
    assert "".join(pieces) == "".join(corpora._lines_of([path, path]))
    assert all(len(piece) <= longest + 1 for piece in pieces)


def test_mapped_and_in_memory_are_one_run(folder, monkeypatch):
    config, small = opened(folder)
    assert isinstance(small._parts["train"].ids, np.ndarray)
    in_pieces(monkeypatch)
    for workers in (0, 3):  # made by three processes, then found
        monkeypatch.setenv("PDP_CACHE_DIR", str(folder / f"cache{workers}"))
        for _ in range(2):
            _, large = opened(folder, f"data.workers={workers}")
            assert isinstance(large._parts["train"].ids, MappedTokens)
            assert large.data_fingerprint == small.data_fingerprint
            assert large.data_note == small.data_note
            assert config_hash(config, large.data_fingerprint) == config_hash(config, small.data_fingerprint)
            for part in ("train", "validation", "test"):
                one, other = small._parts[part], large._parts[part]
                assert one.ids.tolist() == other.ids.tolist()
                assert (one.words, one.size) == (other.words, other.size)
            first = [
                loader.__iter__().__next__()
                for loader in (task.train_loader(4, 7, "none", 0) for task in (small, large))
            ]
            assert (first[0]["input_ids"] == first[1]["input_ids"]).all() and (
                first[0]["index"] == first[1]["index"]
            ).all()
        (bin_file, *_) = sorted((folder / f"cache{workers}/tokens").glob("*/tokens.bin"))
        assert not (bin_file.parent / "blocks").exists()


def test_another_text_or_tokenizer_is_another_store_and_a_damaged_one_is_made_anew(folder, monkeypatch):
    in_pieces(monkeypatch)
    _, before = opened(folder)
    stores = folder / "cache/tokens"
    found = {path.parent for path in stores.glob("*/tokens.bin")}
    (folder / "test.txt").write_text(made(4, 60), encoding="utf-8", newline="")
    _, after = opened(folder)
    assert len({path.parent for path in stores.glob("*/tokens.bin")} - found) == 1
    assert before.data_fingerprint != after.data_fingerprint
    for path in stores.glob("*/tokens.bin"):
        os.truncate(path, 10)
    _, again = opened(folder)
    assert again._parts["train"].ids.tolist() == after._parts["train"].ids.tolist()


def test_tokenizers_whose_texts_begin_as_if_after_a_space_are_cut_exactly(folder, monkeypatch):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    in_pieces(monkeypatch)
    text = "the cat sat on the mat " * 40 + "\n"
    (folder / "long.txt").write_text(text)
    pieces = sorted({f"▁{word}" for word in text.split()})
    vocab = {piece: number for number, piece in enumerate(["<unk>", "▁", "\n", *pieces, *(f"{p}\n" for p in pieces)])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    found = token_store.TokenStore(folder / "stores", FileText([folder / "long.txt"]), tokenizer).open(1, False)
    assert found.tolist() == tokenizer(text.rstrip(" \n") + " \n", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["word pieces", "byte pairs", "cut and padded"])
def test_the_tokens_are_those_of_the_tokenizer_s_own_call(kind):
    texts = made(5, 60).splitlines(keepends=True) + ["", " ", "unkn\u00f6wn \U0001f642 [MASK]"]
    train = text_tokenizer.train_word_pieces if kind == "word pieces" else text_tokenizer.train_byte_pairs
    tokenizer = train(texts, 300)
    right = [token for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in row]
    if kind == "cut and padded":  # as a tokenizer.json may say
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.enable_padding(length=40)
    found = text_tokenizer.encode_plainly(tokenizer, texts)
    assert found.dtype == np.int32 and found.tolist() == right


def test_bad_files_are_refused_in_a_line(folder, monkeypatch):
    in_pieces(monkeypatch)
    (folder / "test.txt").write_bytes(b"good line\n" * 50 + b"\xff\xfe broken\n")
    with pytest.raises(Refusal, match="test.txt cannot be read as UTF-8 text"):
        opened(folder, "data.workers=2")
    monkeypatch.setenv("PDP_CACHE_DIR", "/proc/none")
    with pytest.raises(Refusal, match="set PDP_CACHE_DIR"):
        opened(folder, "output_dir=/proc/neither")


_OPEN = """
import sys, resource
from pathlib import Path
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from pdp.tasks import text_streams
from pdp.tasks.text_streams import FileText
from pdp.tasks.token_store import TokenStore
text, tokenizer, stores, workers, block = sys.argv[1:]
text_streams.BLOCK = int(block)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = TokenStore(Path(stores), FileText([Path(text)]), PreTrainedTokenizerFast(tokenizer_file=tokenizer))
tokens = store.open(int(workers), False)
for start in range(0, len(tokens), 100_000):
    tokens[start : start + 100_000]
print(len(tokens), tokens.words, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def start(text, tokenizer, stores, workers, block):
    given = [str(one) for one in (text, tokenizer, stores, workers, block)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", _OPEN, *given], env=environment, stdout=subprocess.PIPE, text=True,
                            start_new_session=True)  # fmt: skip


@pytest.fixture
def tokenizer_file(tmp_path):
    from pdp.tasks.text_tokenizer import train_byte_pairs

    path = tmp_path / "tokenizer.json"
    train_byte_pairs([made(5, 200)], 300).backend_tokenizer.save(str(path))
    return path


def test_killed_in_the_middle_it_goes_on_with_what_is_there(tmp_path, tokenizer_file):
    text = tmp_path / "text"
    text.write_text(made(6, 12_000), encoding="utf-8")
    stores = tmp_path / "stores"
    first = start(text, tokenizer_file, stores, 2, 20_000)
    while len(blocks := list(stores.glob("*/blocks/*.tokens"))) < 5:
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in blocks}
    before = list(stores.glob("*/blocks/*.tokens"))
    assert before and not list(stores.glob("*/tokens.json"))
    # One that is whole is not made again: a mark put into it arrives in the joined file.
    marked = min(kept)
    tokens = np.fromfile(marked, np.uint16, offset=16)
    tokens[:5] = 299, 298, 297, 299, 298
    with marked.open("r+b") as file:
        file.seek(16)
        tokens.tofile(file)
    second = start(text, tokenizer_file, stores, 2, 20_000)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    whole = start(text, tokenizer_file, tmp_path / "other", 1, 20_000)
    assert whole.communicate(timeout=120)[0].split()[:2] == out.split()[:2]
    (one,), (other,) = stores.glob("*/tokens.bin"), (tmp_path / "other").glob("*/tokens.bin")
    here, there = np.fromfile(one, np.uint16), np.fromfile(other, np.uint16)
    assert 0 < (here != there).sum() <= 5


@pytest.mark.slow
def test_one_long_line_is_read_in_bounded_memory(tmp_path, tokenizer_file):
    text = tmp_path / "text"
    with text.open("w", encoding="utf-8") as file:
        for _ in range(20):
            file.write("the cat sat on a mat, 12 times " * 33_000)  # a megabyte
    done = start(text, tokenizer_file, tmp_path / "stores", 1, 8 * 2**20)
    tokens, words, kilobytes = map(int, done.communicate(timeout=300)[0].split())
    assert words == 20 * 33_000 * 8
    assert tokens > words
    assert kilobytes < 300_000  # a list of its tokens alone would take as much


@pytest.mark.parametrize("kind", ["disk", "folder", "rows"])
def test_a_data_set_of_the_hub_in_a_folder(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("PDP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    if kind == "rows":
        in_pieces(monkeypatch)
    rows = {name: [line for line in made(seed, 80).splitlines()] + ["", None, "two\nlines"] for name, seed in
            (("train", 1), ("test", 2))}  # fmt: skip
    parts = datasets.DatasetDict({name: datasets.Dataset.from_dict({"body": texts}) for name, texts in rows.items()})
    folder = tmp_path / "set"
    if kind == "folder":
        folder.mkdir()
        for name, part in parts.items():
            part.to_parquet(folder / f"{name}.parquet")
    else:
        parts.save_to_disk(folder)
    given = ["model=gpt2_tiny", "prune=none", "data=hub_text", f"data.root={folder}", "data.context=16",
             "data.vocabulary=300"]  # fmt: skip
    task = build_task(compose([*given, "data.column=body"]))
    task.open_data()
    lines = [f"{row}\n" for row in rows["test"] if row and row.strip()]
    assert task._parts["test"].words == sum(len(line.split()) for line in lines)
    assert task.tokenizer.decode(task._parts["test"].ids.tolist()) == "".join(lines)
    with pytest.raises(Refusal, match="has no column text, its columns are body: give data.column"):
        build_task(compose(given)).open_data()
    with pytest.raises(Refusal, match="has no part dev, its parts are .*: give data.test_split"):
        build_task(compose([*given, "data.column=body", "data.test_split=dev"])).open_data()
    sliced = build_task(compose([*given, "data.column=body", "data.train_split='train[:50%]'"]))
    sliced.open_data()
    assert 0 < len(sliced._parts["train"].ids) < len(task._parts["train"].ids)


def test_without_network_a_hub_name_is_refused_in_a_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Refusal) as caught:
        build_task(compose(["model=gpt2_tiny", "prune=none", "data=hub_text", "data.name=nobody/none"])).open_data()
    assert "data.name=nobody/none could not be had" in str(caught.value) and "data.root=" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(Refusal, match="give data.name=<owner/name on the hub>"):
        compose(["model=gpt2_tiny", "prune=none", "data=hub_text"])
