"""Tokenizers: from a folder, a vocabulary file or the hub, a checkpoint's own, or trained on the training text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from pdp.errors import Refusal, Stopped
from pdp.tasks import byte_pairs
from pdp.tasks.hub import cache_alone, limited_patience, reachable
from pdp.wording import one_line

_CHUNK = 10_000  # texts encoded at a time
_SHOWN = 100_000  # with at least this many texts, progress is shown
_OFFLINE = {
    "data.tokenizer": "without network give data.tokenizer=<a folder with tokenizer.json, vocab.txt, or vocab.json and "
    "merges.txt>",
    "model.pretrained": "without network give model.pretrained=<a folder that save_pretrained wrote, tokenizer "
    "included>, or model.pretrained=false for random weights and a tokenizer made from the training text",
}
_WITHOUT = {
    "data.tokenizer": "give data.tokenizer=<a folder that has one>",
    "model.pretrained": "give data.tokenizer=<the folder or hub's name of the tokenizer that it was trained with>",
}
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "vocab.bpe", "tekken.json", "bpe.codes")
_VOCABULARY_ENDINGS = (".model", ".spm", ".tiktoken")  # of sentencepiece and tiktoken
# Tokens to pad with if the tokenizer names none; the first that the vocabulary has.
_PADDING = ("[PAD]", "<pad>", "<|pad|>", "<PAD>", "<|endoftext|>", "</s>", "<eos>", "[SEP]", "[UNK]", "<unk>")
_BELONGS = 0.5  # least share of a vocabulary that must have the same numbers as in the checkpoint's own
_UNKNOWN = 0.9  # share of unknown tokens in a text from which on the tokenizer is not the right one


def _holds_vocabulary(name: str) -> bool:
    return name in _VOCABULARIES or name.endswith(_VOCABULARY_ENDINGS)


def load_tokenizer(source: str, key: str) -> Any:
    """A fast tokenizer of transformers from a folder, a vocab.txt or the hub; raises `Refusal` naming `key`."""
    from transformers import AutoTokenizer, BertTokenizerFast, GPT2TokenizerFast

    path = Path(source).expanduser()
    try:
        if path.is_file():
            if path.name == "tokenizer.json":
                return _ready(AutoTokenizer.from_pretrained(path.parent, local_files_only=True))
            return _ready(BertTokenizerFast(vocab=str(path)))
        if path.is_dir():
            names = {entry.name for entry in path.iterdir()}
            if not any(_holds_vocabulary(name) for name in names):
                # transformers would make one with only special tokens, for which every word is unknown.
                raise Refusal(
                    f"{key}={source} holds no tokenizer: it must have tokenizer.json, vocab.txt, vocab.json with "
                    f"merges.txt, or a sentencepiece model; {_WITHOUT[key]}"
                )
            if names & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
                return _ready(AutoTokenizer.from_pretrained(path, local_files_only=True))
            if "vocab.txt" in names:
                return _ready(BertTokenizerFast.from_pretrained(path, local_files_only=True))
            if {"vocab.json", "merges.txt"} <= names:
                return _ready(GPT2TokenizerFast.from_pretrained(path, local_files_only=True))
            return _ready(AutoTokenizer.from_pretrained(path, local_files_only=True))
        offline = not reachable()
        with limited_patience(), cache_alone(offline):
            return _ready(AutoTokenizer.from_pretrained(source, local_files_only=offline))
    except Refusal:
        raise
    except Exception as error:  # the clients raise many types of exceptions for missing, damaged and foreign files
        raise Refusal(
            f"{key}={source}: no tokenizer could be had ({type(error).__name__}: {one_line(error)[:120]}); "
            f"{_OFFLINE[key]}"
        ) from None


def _ready(tokenizer: Any) -> Any:
    if not tokenizer.is_fast:
        raise Refusal(f"{type(tokenizer).__name__} has no fast form: give another data.tokenizer")
    tokenizer.own_max_length = tokenizer.model_max_length  # exports restore it
    tokenizer.model_max_length = int(1e30)  # lengths are limited by data.max_length and data.context
    if tokenizer.pad_token is None:
        known = tokenizer.get_vocab()
        found = tokenizer.eos_token or tokenizer.unk_token or next((one for one in _PADDING if one in known), None)
        if found is not None:
            tokenizer.pad_token = found
    return tokenizer


def size_of(tokenizer: Any) -> int:
    """The number of rows that an embedding needs for every token number; numbers may have gaps."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)


def padding_of(tokenizer: Any, needed: str | None = None) -> int:
    """The number of the padding token; 0 if there is none, or `Refusal` if `needed`, a key, is given."""
    number = tokenizer.pad_token_id
    if number is None and needed is not None:
        raise Refusal(
            f"the tokenizer of {needed} has no token to pad with (pad, eos or unk), which texts of several lengths "
            "need: give data.tokenizer=<a folder whose tokenizer has one>"
        )
    return 0 if number is None else int(number)


def check_known(tokenizer: Any, ids: np.ndarray, named: str) -> None:
    """Raises `Refusal` if most tokens of a text are unknown to the tokenizer, so that it is not one for such texts."""
    size, unknown = len(tokenizer), tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids)
    counted = ids[~np.isin(ids, [one for one in special if one != unknown])]
    share = float(np.mean(counted == unknown)) if len(counted) and unknown is not None else 0.0
    alone = size <= max(1, len(special))
    if alone or share > _UNKNOWN:
        knows = "has special tokens alone" if alone else f"does not know {share:.1%} of the text's tokens"
        raise Refusal(
            f"{named}: its tokenizer of {size:,} entries {knows}, so that nothing could be learnt: give "
            "data.tokenizer=<one that has the words>"
        )


def check_belongs(tokenizer: Any, named: str, checkpoint: str) -> None:
    """Raises `Refusal` if the checkpoint's folder has a tokenizer with other numbers for the same tokens."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir() or not any(_holds_vocabulary(entry.name) for entry in folder.iterdir()):
        return
    theirs, ours = load_tokenizer(checkpoint, "model.pretrained").get_vocab(), tokenizer.get_vocab()
    same = sum(theirs.get(token) == number for token, number in ours.items())
    if same < _BELONGS * min(len(ours), len(theirs)):
        raise Refusal(
            f"data.tokenizer={named} is not the tokenizer of {checkpoint}: {same:,} of its {len(ours):,} entries have "
            "the number that the weights were trained with; drop data.tokenizer, or give model.pretrained=false"
        )


def train_word_pieces(texts: Iterable[str], vocabulary: int) -> Any:
    """A lower-case WordPiece tokenizer like BERT's: whole words for the most frequent ones, letters for all others.

    The library's own trainer numbers the pieces in a different order in every process, so that no run could be found
    again.
    """
    from tokenizers import normalizers, pre_tokenizers
    from transformers import BertTokenizerFast

    plain, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(plain.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    words = sorted((-count, word) for word, count in counts.items() if count > 1 and len(word) > 1)
    pieces += [word for _, word in words[: max(0, vocabulary - len(pieces))]]
    return _ready(BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}))


def train_byte_pairs(texts: Iterable[str], vocabulary: int, apart: bool = False) -> Any:
    """A byte-level BPE tokenizer like GPT-2's, with at most `vocabulary` entries.

    With `apart` a process of its own trains it, which keeps the memory of this one small. Raises `Stopped` where that
    process was ended.
    """
    from transformers import GPT2TokenizerFast

    try:
        model = (byte_pairs.train_apart if apart else byte_pairs.train)(texts, vocabulary)
    except ChildProcessError as error:
        raise Stopped(f"{error} (-9: killed, as where memory runs out): the same command starts it again") from None
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    return _ready(GPT2TokenizerFast(vocab=model["vocab"], merges=merges))


def find_tokenizer(
    named: str | None, checkpoint: str | None, train: Callable[[], Any], kept: Any = None
) -> tuple[Any, str]:
    """The named tokenizer, else the checkpoint's, else the `kept` one, else one that is trained now; and a word on it.

    `kept` is the one that was trained for a finished run.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if named is not None:
        shown = Path(named).name if Path(named).exists() else named
        tokenizer = load_tokenizer(named, "data.tokenizer")
        if checkpoint is not None:
            check_belongs(tokenizer, named, checkpoint)
        return tokenizer, f"tokenizer {shown}"
    if checkpoint is not None:
        return load_tokenizer(checkpoint, "model.pretrained"), "the checkpoint's tokenizer"
    if kept is not None:
        return kept, f"the run's tokenizer of {len(kept):,} entries"
    tokenizer = train()
    return tokenizer, f"a tokenizer of {len(tokenizer):,} entries trained on the training text"


def encode(
    tokenizer: Any, first: list[str], second: list[str] | None, limit: int | None, special: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All texts, or pairs, as one array of tokens: ids int32, token types int8, starts int64 (one more than texts)."""
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    chunks = range(0, len(first), _CHUNK)
    for start in track(chunks, "tokenizing", transient=True, disable=len(first) < _SHOWN):
        part = slice(start, start + _CHUNK)
        coded = tokenizer(
            first[part],
            None if second is None else second[part],
            add_special_tokens=special,
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        for row, kinds in zip(coded["input_ids"], coded["token_type_ids"], strict=True):
            ids.append(np.asarray(row, dtype=np.int32))
            types.append(np.asarray(kinds, dtype=np.int8))
            lengths.append(len(row))
    starts = np.r_[0, np.cumsum(np.asarray(lengths, dtype=np.int64))]
    empty_ids, empty_types = np.zeros(0, np.int32), np.zeros(0, np.int8)
    return np.concatenate([empty_ids, *ids]), np.concatenate([empty_types, *types]), starts


def encode_plainly(tokenizer: Any, texts: list[str]) -> np.ndarray:
    """The tokens of all texts in a row, int32: those of `encode` without limit and special tokens, in less time.

    The library's own call also tells where in the text each token lies, which takes time that nothing here needs.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    rows = (row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False))
    return np.fromiter(chain.from_iterable(rows), np.int32)
