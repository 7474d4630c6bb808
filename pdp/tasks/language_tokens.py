"""From running text to rows of tokens: in memory, or mapped from files where the text is large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdp.config.schema import Config
from pdp.ranks import is_main_process
from pdp.tasks.corpora import Corpus, Text, words_of_lines
from pdp.tasks.mapped_tokens import MappedTokens
from pdp.tasks.text_streams import StreamedText
from pdp.tasks.text_tokenizer import encode, train_byte_pairs
from pdp.tasks.token_store import TokenStore, token_folder, trained_once

Tokens = np.ndarray | MappedTokens


def folder_of(config: Config) -> Path:
    """Where the tokens of large texts lie."""
    return token_folder(Path(config.output_dir) / ".cache")


def trained_tokenizer(config: Config, corpus: Corpus) -> Any:
    """A byte-level tokenizer of at most data.vocabulary entries, trained on the training text."""
    text = corpus.test if corpus.train is None or corpus.train == [] else corpus.train
    if isinstance(text, StreamedText):
        return trained_once(folder_of(config), text, config.data.vocabulary, train_byte_pairs)  # type: ignore[attr-defined]
    return train_byte_pairs(text, config.data.vocabulary)  # type: ignore[attr-defined]


def tokens_of(config: Config, corpus: Corpus, tokenizer: Any) -> tuple[dict[str, Tokens], dict[str, int]]:
    """The tokens of each part that there is, and the words of all; raises `Refusal`."""
    ids: dict[str, Tokens] = {}
    words = {"train": 0, "validation": 0, "test": 0}
    parts: dict[str, Text | None] = {name: getattr(corpus, name) for name in words}
    for name, text in parts.items():
        if isinstance(text, StreamedText):
            mapped = TokenStore(folder_of(config), text, tokenizer).open(config.data.workers, is_main_process())
            ids[name], words[name] = mapped, mapped.words
        elif text is not None:
            ids[name] = encode(tokenizer, text, None, None, special=False)[0]
            words[name] = words_of_lines(text) if name != "train" else 0
    return ids, words
