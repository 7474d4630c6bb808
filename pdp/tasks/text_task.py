"""Shared by tasks on texts: the transformer, its tokenizer, notes for the banner, and the model's inputs."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from pdp.config.schema import Config
from pdp.errors import Refusal, Stopped
from pdp.runs.record import TOKENIZER, Record, read_record
from pdp.tasks import build_task
from pdp.tasks.kept_tokenizer import ForeignVocabulary, as_it_began, digest_of, keep_tokenizer, kept_tokenizer
from pdp.tasks.language_heads import positions
from pdp.tasks.language_models import (
    bare,
    build_transformer,
    checkpoint_of,
    outside_the_blocks,
    showing_attention,
    takes,
)
from pdp.tasks.mapped_tokens import add_to_digest
from pdp.tasks.task import Batch, Task
from pdp.tasks.text_tokenizer import find_tokenizer, load_tokenizer
from pdp.wording import one_line


class TextTask(Task):
    """A transformer from the hub, from a folder or with random weights, and a tokenizer that fits it."""

    length_key: str  # the option that limits a text's tokens

    def __init__(self, config: Config):
        self.config = config
        self.data: Any = config.data
        # Kept because a finished run is evaluated without loading its pretrained weights again.
        self.checkpoint = checkpoint_of(config)
        self.data_name = config.data.name
        self.notes: list[str] = []
        self.tokenizer: Any = None
        self._tokenizer_note = ""
        # The finished run whose tokenizer this data is read with: that of from=, or one that is measured.
        self._run = None if config.start.run is None else Path(config.start.run)
        self._run_said = f"from={config.start.run}"
        self._remade: Any = None  # the tokenizer of a run that kept none, made anew
        self._fingerprint: str | None = None
        self._end: int | None = None  # the token at which an encoder-decoder reads the class
        self._made = False  # the data is random, as the real data is missing

    def follow(self, run: Path, said: str) -> None:
        """Reads texts with the tokenizer that was trained for this run, if it was, and scores as it did."""
        self._run, self._run_said = run, said

    @property
    def trains_tokenizer(self) -> bool:
        """Whether no tokenizer is named, so that the vocabulary is made of a run's training text and belongs to it."""
        return self.data.tokenizer is None and self.checkpoint is None

    def keep(self, run: Path, begun: bool) -> None:
        """Keeps the tokenizer in the run's folder, if it belongs to the run."""
        if not self.trains_tokenizer:
            return
        kept = kept_tokenizer(run) if begun else None
        if kept is None:
            keep_tokenizer(self.tokenizer, run)
        else:
            self.tokenizer = kept

    @property
    def reading(self) -> dict[str, Any]:
        """A digest of the vocabulary."""
        return {} if self.tokenizer is None else {"tokenizer": digest_of(self.tokenizer)}

    def open_data(self) -> None:
        """Reads and tokenizes the data; raises `Refusal`, also where the vocabulary of a followed run cannot be had."""
        self._open()
        if self._run is None or self._is_vocabulary_of(record := read_record(self._run)):
            return
        if not self.trains_tokenizer or (self._run / TOKENIZER).is_dir():
            theirs: Any = as_it_began(self._run)
            kept = str(self._run / TOKENIZER) if (self._run / TOKENIZER).is_dir() else None
            self._refuse_vocabulary(
                f"its model was trained with another tokenizer than that of {self.tokenizer_named}",
                f"data.tokenizer={kept or theirs.data.tokenizer or checkpoint_of(theirs)} as it was then",
            )
        # The training text at hand is another, and what is trained on it now numbers other words.
        self._remade = self._made_again(record)
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Reads and tokenizes the data, calls `take_tokenizer` and `identify`; raises `Refusal`."""

    def take_tokenizer(self, train: Callable[[], Any]) -> None:
        """Sets the tokenizer: the named one, the checkpoint's, the followed run's, or the one that `train` makes."""
        kept = self._remade
        if kept is None and self._run is not None and self.trains_tokenizer:
            kept = kept_tokenizer(self._run)
        self.tokenizer, self._tokenizer_note = find_tokenizer(self.data.tokenizer, self.checkpoint, train, kept)

    def read_before(self, what: str) -> Any:
        """What the followed run's record says under `reading`; None without one, and with records that are older."""
        return None if self._run is None else read_record(self._run).reading.get(what)

    def _is_vocabulary_of(self, record: Record) -> bool:
        """Whether a finished run read with the tokenizer at hand; of older ones only what was trained is checked."""
        if known := record.reading.get("tokenizer"):
            return bool(known == digest_of(self.tokenizer))
        return not self.trains_tokenizer or self.data_fingerprint == record.data_fingerprint

    def _made_again(self, record: Record) -> Any:
        """The tokenizer of a run that kept none, trained anew on the run's own text; raises `ForeignVocabulary`."""
        assert self._run is not None
        config = as_it_began(self._run)
        reason = "is changed"
        if config.data != self.config.data:
            task = build_task(config)
            try:
                task.open_data()
                if isinstance(task, TextTask) and task._is_vocabulary_of(record):
                    return task.tokenizer
            except (Refusal, Stopped) as error:
                reason = f"is not at hand ({one_line(error)})"
        keys = "data.train and data.test" if self.data.source == "table" else "data.root"
        self._refuse_vocabulary(
            f"it kept no tokenizer, and the text that its vocabulary was made of {reason}",
            f"{keys} with the run's own text, or train it again",
        )

    def _refuse_vocabulary(self, why: str, instead: str) -> NoReturn:
        self.tokenizer = None  # so that nobody takes it for the run's
        raise ForeignVocabulary(f"{self._run_said}: {why}, so that its words would be mistaken: give {instead}")

    @property
    def data_fingerprint(self) -> str:
        """The first 16 hex digits of a sha256 of all tokens and labels."""
        if self._fingerprint is None:
            raise RuntimeError("the fingerprint is known after open_data()")
        return self._fingerprint

    def identify(self, *arrays: np.ndarray) -> None:
        """Sets the fingerprint from what the model sees, whatever files and tokenizer it came from."""
        digest = hashlib.sha256(self.fingerprint_start.encode())
        for array in arrays:
            add_to_digest(digest, array)
        self._fingerprint = digest.hexdigest()[:16]

    @property
    def fingerprint_start(self) -> str:
        """What the fingerprint begins with, besides tokens and labels."""
        return f"{len(self.tokenizer)} {self.data.limit} {self._made}"

    @property
    def tokenizer_named(self) -> str:
        """The source of the tokenizer, as refusals name it."""
        if self.data.tokenizer is not None:
            return f"data.tokenizer={self.data.tokenizer}"
        return f"model.pretrained={self.checkpoint}" if self.checkpoint else "the tokenizer made of the training text"

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...] | None:
        """The class names; None for a language model."""

    @property
    @abstractmethod
    def length(self) -> int:
        """The number of tokens in the longest text."""

    @property
    def regression(self) -> bool:
        """Whether the label is a score."""
        return False

    def build_model(self) -> nn.Module:
        """The transformer, whose prunable layers are the linear ones of its blocks; raises `Refusal`."""
        wanted = self.config.model.pretrained.lower() != "false"  # false: a finished run's own weights are loaded later
        if self.tokenizer is None and self.data.tokenizer is not None:
            self.tokenizer = load_tokenizer(self.data.tokenizer, "data.tokenizer")
        if self.tokenizer is None and self._run is not None and self.trains_tokenizer:
            self.tokenizer = kept_tokenizer(self._run)
        try:
            model, notes = build_transformer(
                self.config, self.checkpoint, self.tokenizer, self.labels, self.regression, wanted
            )
        except Refusal as refusal:
            # To show the layers, or for a debug run, random weights are enough.
            if self.checkpoint is None or not self.config.model.architecture or not self._needs_no_weights:
                raise
            model, _ = build_transformer(self.config, None, self.tokenizer, self.labels, self.regression)
            notes = [f"the model is random, as its weights are not at hand: {refusal}"]
        limit = positions(model)
        if limit is not None and self.length > limit:
            raise Refusal(
                f"{self.length_key}={self.length} is more than the {limit} positions of {self.config.model.name}: "
                f"lower {self.length_key}"
            )
        self.exclude = outside_the_blocks(model)
        if self.labels is not None and getattr(model.config, "is_encoder_decoder", False):
            self._end = getattr(model.config, "eos_token_id", None)
        self.notes += [note for note in notes if note not in self.notes]
        return model

    @property
    def _needs_no_weights(self) -> bool:
        return self.config.dry_run or self.data.noise_if_absent

    def example_input(self) -> Tensor:
        """Token 0 repeated, int64 (1, longest text); ends like a text if the model looks for the end."""
        tokens = torch.zeros(1, self.length, dtype=torch.int64)
        if self._end is not None:
            tokens[:, -1] = self._end
        return tokens

    def forward(self, model: nn.Module, batch: Batch, detailed: bool) -> Any:
        """The transformer's output for a batch; `detailed` adds hidden states and attentions."""
        inputs = self.inputs_of(model, batch)
        if not detailed:
            return model(**inputs)
        with showing_attention(model):
            return model(**inputs, output_hidden_states=True, output_attentions=True)

    def inputs_of(self, model: nn.Module, batch: Batch) -> Batch:
        """The part of a batch that the transformer takes, int64 (N, tokens) each.

        Token types only if the tokenizer is of a model with such: GPT-2 would read them as tokens.
        """
        inner = bare(model)
        known = getattr(self.tokenizer, "model_input_names", ())
        return {
            name: batch[name]
            for name in ("input_ids", "attention_mask", "token_type_ids")
            if name in batch and takes(inner, name) and (name != "token_type_ids" or name in known)
        }

    @property
    def noise_allowed(self) -> bool:
        """Whether a debug run may use random data in place of missing data."""
        return bool(self.data.noise_if_absent)
