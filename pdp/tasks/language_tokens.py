"""Tokens of a large text in a memory-mapped file, and a tokenizer trained on a text of any size."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pdp.config.schema import Config
from pdp.ranks import is_main_process
from pdp.tasks.corpora import Corpus, written
from pdp.tasks.mapped_tokens import MappedTokens
from pdp.tasks.text_streams import StreamedText
from pdp.tasks.text_tokenizer import train_byte_pairs
from pdp.tasks.token_store import TokenStore, token_folder, trained_once

Tokens = np.ndarray | MappedTokens


def folder_of(config: Config) -> Path:
    """The folder in which tokens of large texts are stored: in the cache, else below output_dir."""
    return token_folder(Path(config.output_dir) / ".cache")


def trained_tokenizer(config: Config, corpus: Corpus) -> Any:
    """A byte-level BPE tokenizer with at most data.vocabulary entries, trained on the training (else the test) text."""
    text = corpus.test if corpus.train is None or corpus.train == [] else corpus.train
    vocabulary = config.data.vocabulary  # type: ignore[attr-defined]
    if isinstance(text, StreamedText):
        return trained_once(folder_of(config), text, vocabulary, partial(train_byte_pairs, apart=True))
    return train_byte_pairs(written(text), vocabulary)


def mapped(config: Config, text: StreamedText, tokenizer: Any) -> MappedTokens:
    """The tokens of a large text; if they are not stored yet, data.workers processes make them. Raises `Refusal`."""
    return TokenStore(folder_of(config), text, tokenizer).open(config.data.workers, is_main_process())
