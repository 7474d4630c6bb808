"""A tokenizer that was trained for a run, in the run's directory: a model is worth nothing with another vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from pdp.config.schema import Config, StartConfig
from pdp.config.stored import read_config
from pdp.errors import Refusal
from pdp.runs.record import TOKENIZER
from pdp.tasks.text_tokenizer import load_tokenizer


class ForeignVocabulary(Refusal):
    """The tokenizer at hand is not the one that a run's model was trained with, and that one cannot be had."""


def digest_of(tokenizer: Any) -> str:
    """The first 16 hex digits of a sha256 over a tokenizer's entries and their numbers."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def keep_tokenizer(tokenizer: Any, run: Path) -> None:
    """Writes the tokenizer into the run's directory as transformers does, all of it or nothing; replaces another."""
    for leftover in run.glob(f".{TOKENIZER}.*"):  # of a process that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)
    beside = run / f".{TOKENIZER}.{os.getpid()}"
    try:
        tokenizer.save_pretrained(beside)
        if (run / TOKENIZER).is_dir():
            shutil.rmtree(run / TOKENIZER)
        beside.replace(run / TOKENIZER)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def kept_tokenizer(run: Path) -> Any | None:
    """The tokenizer that was kept with the run; None with runs that are older, or read with a named tokenizer."""
    folder = run / TOKENIZER
    return load_tokenizer(str(folder), "data.tokenizer") if folder.is_dir() else None


def as_it_began(run: Path) -> Config:
    """The run's configuration as the data was read by it before tokenizers were kept: also with from=, by itself."""
    config = read_config(run)
    config.start = StartConfig()
    return config
