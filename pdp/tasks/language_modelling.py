"""Causal language modelling: perplexity per token and per word over windows with a stated stride."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.tasks import corpora
from pdp.tasks import text_loading as loading
from pdp.tasks.hub_texts import read_hub
from pdp.tasks.language_tokens import Tokens, folder_of, mapped, trained_tokenizer
from pdp.tasks.mapped_tokens import MappedTokens
from pdp.tasks.sampling import SPLIT_SEED, evaluation_loader, hashed
from pdp.tasks.task import Batch, Outputs
from pdp.tasks.text_streams import StreamedText
from pdp.tasks.text_task import TextTask
from pdp.tasks.text_tokenizer import check_known, encode, padding_of
from pdp.tasks.token_store import fingerprint_once

_UNASKED = (
    "No text was named (data=wikitext, or data=text data.root=...), so this trains on the docstrings of Python's own"
    " standard library."
)
_TRAIN_TOKENS = {"docstrings": 500_000, "wikitext-2": 2_400_000, "wikitext-103": 118_000_000}  # estimates for dry runs
_LOOKED_AT = 1_000_000  # tokens of the test text, for whether the tokenizer knows it


class LanguageModellingTask(TextTask):
    """Prediction of the next token of running text; the metric is perplexity per token (lower is better)."""

    metric_name = "perplexity"
    higher_is_better = False
    upper_bound = None
    length_key = "data.context"
    labels = None

    def __init__(self, config: Config):
        super().__init__(config)
        self.guide = self.data.protocol == "huggingface"
        self.stride: int = self.data.stride or (self.data.context if self.guide else self.data.context - 1)
        self._parts: dict[str, loading.Windows] = {}

    @property
    def length(self) -> int:
        """The option data.context."""
        return int(self.data.context)

    @property
    def test_is_validation(self) -> bool:
        """Whether the test text also serves as validation text."""
        return "validation" not in self._parts if self._parts else self.data.validation == 0

    @property
    def data_note(self) -> str:
        """A sentence for the banner, with stride and tokenization once the data is open."""
        if self.data.unasked and self.data.source == "docstrings":
            note = _UNASKED
        elif self._made:
            note = f"Sentences of a grammar in place of {self.data_name}, which is not at hand."
        elif self.data.source == "docstrings":
            note = "The docstrings of Python's own standard library."
        else:
            note = f"{self.data_name}: running text."
        if not self._parts:
            return f"{note} Windows of {self.length} tokens, measured with stride {self.stride}."
        counts = {name: f"{part.predicted:,}" for name, part in self._parts.items()}
        held = f"{counts['validation']} validation, " if "validation" in counts else "none held out for validation, "
        train = f"{counts['train']} train, " if "train" in counts else ""
        limit = "" if self.data.limit is None else f"; the first {self.data.limit:,} windows of each part"
        words = f" ({self._parts['test'].words:,} words)" if self._parts["test"].words else ""
        return (
            f"{note} Predicted tokens: {train}{held}{counts['test']} test{words}, in windows of {self.length}, "
            f"measured with stride {self.stride}; {self._tokenizer_note}; {self._joined}{limit}."
        )

    @property
    def _joined(self) -> str:
        if self.guide:
            return "lines joined by blank lines and tokenized as one text, as Hugging Face's guide to perplexity does"
        return "blank lines left out"

    def _encode(self, lines: Any) -> Tokens:
        """The text as one array of tokens, int32; under the guide's protocol one text, with special tokens once."""
        if isinstance(lines, StreamedText):
            return mapped(self.config, lines, self.tokenizer)
        if self.guide:
            return encode(self.tokenizer, [corpora.joined(lines)], None, None, special=True)[0]
        return encode(self.tokenizer, corpora.written(lines), None, None, special=False)[0]

    def _open(self) -> None:
        corpus = self._read()
        self.take_tokenizer(lambda: trained_tokenizer(self.config, corpus))
        context, padding = self.length, padding_of(self.tokenizer)
        texts = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
        ids = {name: self._encode(text) for name, text in texts.items() if text is not None}
        check_known(self.tokenizer, ids["test"][:_LOOKED_AT], self.tokenizer_named)
        for name, row in ids.items():
            if len(row) < (context if name == "train" else 2):
                raise Refusal(f"the {name} text has {len(row)} tokens, too few for data.context={context}: lower it")
        words = {name: self._words(ids[name], texts[name]) for name in ("test", "validation") if name in ids}
        sizes = {name: self._size(ids[name], texts[name]) for name in ("test", "validation") if name in ids}
        parts: dict[str, loading.Windows] = {
            name: loading.measured_windows(ids[name], context, self.stride, padding, words[name], sizes[name])
            for name in ("test", "validation")
            if name in ids
        }
        share = self.data.validation
        if "train" in ids:
            parts["train"] = loading.training_windows(ids["train"], context, padding)
        if not share:
            parts.pop("validation", None)
        elif "train" in ids and "validation" not in ids:
            parts["train"], parts["validation"] = self._split(parts["train"], share)
        if self.data.limit is not None:
            parts = {name: part.chosen(np.arange(min(len(part), self.data.limit))) for name, part in parts.items()}
        self._parts = parts
        self.identify(*(array for part in parts.values() for array in (part.ids, part.starts, part.ends, part.counted)))

    def identify(self, *arrays: Tokens) -> None:
        """As for any text; what takes a reading of files is done once."""
        if any(isinstance(array, MappedTokens) for array in arrays):
            self._fingerprint = fingerprint_once(folder_of(self.config), self.fingerprint_start, arrays)[:16]
        else:
            super().identify(*arrays)  # type: ignore[arg-type]

    @staticmethod
    def _words(tokens: Tokens, text: Any) -> int:
        return tokens.words if isinstance(tokens, MappedTokens) else corpora.words(text)

    def _size(self, tokens: Tokens, text: Any) -> int:
        """The size of the evaluated text in bytes, as UTF-8."""
        if isinstance(tokens, MappedTokens):
            return tokens.size
        return len((corpora.joined(text) if self.guide else "".join(corpora.written(text))).encode())

    def _read(self) -> corpora.Corpus:
        # The guide's protocol makes one text of all lines, which its tokenizer takes at once.
        data, streamed = self.data, not self.guide
        try:
            if data.source == "docstrings":
                return corpora.read_docstrings()
            if data.source == "wikitext":
                return corpora.read_wikitext(data.name, data.root, streamed)
            if data.source == "hub":
                return read_hub(data, streamed)
            if data.root is None:
                raise Refusal(f"data={data.name} needs data.root: give data.root=<the folder that holds its files>")
            return corpora.read_files(data.root, data.train_files, data.validation_files, data.test_files, streamed)
        except Refusal:
            if not self.noise_allowed:
                raise
            self._made = True
            return corpora.made_text()

    @staticmethod
    def _split(train: loading.Windows, share: float) -> tuple[loading.Windows, loading.Windows]:
        order = np.argsort(hashed(SPLIT_SEED, np.arange(len(train))), kind="stable")
        held = int(len(train) * share + 0.5)
        if not 0 < held < len(train):
            raise Refusal(f"data.validation={share} of {len(train)} training windows leaves a part empty; change it")
        return train.chosen(np.sort(order[held:])), train.chosen(np.sort(order[:held]))

    def sizes(self) -> dict[str, int]:
        """The number of windows in each part; before `open_data` an estimate from what is known about the text."""
        if self._parts:
            return {name: len(self._parts.get(name, ())) for name in ("train", "validation", "test")}
        train = max(2, self._expected_tokens() // self.length)
        own_validation = self.data.source in ("docstrings", "wikitext") or bool(self.data.validation_files)
        held = train // 10 if own_validation else int(train * self.data.validation + 0.5)
        sizes = {"train": train if own_validation else train - held, "validation": held, "test": max(1, train // 10)}
        return {name: min(size, self.data.limit or size) for name, size in sizes.items()}

    def _expected_tokens(self) -> int:
        if self.data.source == "files" and self.data.root is not None:
            folder = Path(self.data.root)
            files = {path for pattern in self.data.train_files for path in folder.glob(pattern) if path.is_file()}
            return sum(path.stat().st_size for path in files) // 4
        return _TRAIN_TOKENS.get(self.data_name.replace("-raw", ""), 1_000_000)

    def _part(self, name: str) -> loading.Windows:
        if not self._parts:
            raise RuntimeError("open_data() comes first")
        if name == "validation" and "validation" not in self._parts:
            name = "test"
        if name not in self._parts:
            raise Refusal("data.train_files is empty, so nothing can be trained: give data.train_files=[<file>]")
        return self._parts[name]

    def train_loader(self, batch_size: int, seed: int, augmentation: str, workers: int) -> DataLoader[Any]:
        """Shuffled windows of data.context tokens."""
        return loading.train_loader(self._part("train"), batch_size, seed, workers, None)

    def evaluation_loader(self, part: str, batch_size: int, workers: int) -> DataLoader[Any]:
        """Every window of "validation" (the test text if none is held out) or "test", once and in order."""
        return evaluation_loader(self._part(part), batch_size, workers)

    def outputs(self, model: nn.Module, batch: Batch, detailed: bool = False) -> Outputs:
        """Logits (counted tokens, vocabulary), float32; hidden states and attentions on request."""
        given = self.forward(model, batch, detailed)
        hidden, attentions = (given.hidden_states, given.attentions) if detailed else (None, None)
        logits, counted = given.logits[:, :-1], _counted(batch)
        rows = logits.flatten(0, 1) if counted is None else logits[counted]
        return Outputs(rows.float(), hidden, attentions)

    def loss_of(self, outputs: Outputs, batch: Batch, label_smoothing: float) -> Tensor:
        """Cross entropy of the next token, averaged over the counted tokens."""
        return functional.cross_entropy(outputs.logits, _targets(batch), label_smoothing=label_smoothing)

    @torch.no_grad()
    def observe(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All (windows,): int64 index, words, bytes, counted tokens; float64 sum of -log p of the tokens."""
        losses = functional.cross_entropy(self.outputs(model, batch).logits, _targets(batch), reduction="none")
        counted = _counted(batch)
        if counted is None:
            counted = torch.ones_like(batch["input_ids"][:, 1:], dtype=torch.bool)
        # float32, because not every device supports float64.
        spread = torch.zeros(counted.shape, dtype=torch.float32, device=counted.device)
        spread[counted] = losses
        return {
            "index": batch["index"],
            "words": batch["words"],
            "bytes": batch["bytes"],
            "tokens": counted.sum(1),
            "loss": spread.cpu().double().sum(1),
        }

    def metrics(self, observations: dict[str, np.ndarray]) -> dict[str, float]:
        """perplexity = exp(loss), loss the mean over tokens; perplexity_per_word = exp(sum / words of the text).

        Words are separated by white space, and line ends do not count. bits_per_byte is sum / (ln 2 * bytes of the text
        in UTF-8). The latter two are only known if a whole text was evaluated.
        """
        total, tokens = float(observations["loss"].sum()), int(observations["tokens"].sum())
        words = int(observations["words"].sum())
        result = {"perplexity": _exp(total / tokens), "loss": total / tokens}
        size = int(observations["bytes"].sum())
        result |= {"perplexity_per_word": _exp(total / words)} if words else {}
        return result | ({"bits_per_byte": total / (math.log(2) * size)} if size else {})


def _counted(batch: Batch) -> Tensor | None:
    """At which positions the next token counts, bool (windows, tokens - 1); None means all."""
    return batch["labels"][:, 1:] != -100 if "labels" in batch else None


def _targets(batch: Batch) -> Tensor:
    """The counted tokens, int64 (tokens,)."""
    counted = _counted(batch)
    return batch["input_ids"][:, 1:].flatten() if counted is None else batch["labels"][:, 1:][counted]


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
