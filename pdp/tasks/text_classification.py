"""Classification of sentences and of pairs: GLUE, three-way inference from TSV files, own tables, or a grammar."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.tasks import text_loading as loading
from pdp.tasks.examples import Examples, say_left_out
from pdp.tasks.glue import GLUE, NLI_LABELS, read_glue, read_tsv_folder
from pdp.tasks.glue_metrics import measure, names_of
from pdp.tasks.grammar_examples import GROUPS, TEST_GROUPS, made_examples
from pdp.tasks.grammar_nli import LABELS
from pdp.tasks.language_heads import outside_the_body, rows_of_classes
from pdp.tasks.own_texts import read_own_texts
from pdp.tasks.sampling import (
    balanced_limit,
    drawn_limit,
    evaluation_loader,
    keeping_split,
    stratified_split,
)
from pdp.tasks.task import Batch, Outputs, say_limit
from pdp.tasks.text_task import TextTask
from pdp.tasks.text_tokenizer import check_known, encode, padding_of, train_word_pieces
from pdp.wording import one_line

_SHOWN = 10  # most class names in the banner
_UNASKED = (
    "No data was named (data=glue data.task=... for GLUE), so this trains on natural-language inference made from a"
    " grammar: quantifiers, negation, hypernyms; three labels."
)
_MADE = "Natural-language inference made from a grammar: quantifiers, negation, hypernyms; three labels."


class TextClassificationTask(TextTask):
    """Texts with one label each, or a score; the metric is GLUE's for the task."""

    higher_is_better = True
    upper_bound = 1.0
    length_key = "data.max_length"

    def __init__(self, config: Config):
        super().__init__(config)
        self.task_name: str | None = self.data.task
        self.metric_names = names_of("stsb" if self.data.score else self.task_name)
        self.metric_name = self.metric_names[0]
        self._parts: dict[str, loading.Texts] = {}
        self._reasons: Counter[str] = Counter()
        self._own: tuple[str, ...] = ("0", "1")  # of a table; known when it is open
        self._own_notes: list[str] = []
        self._scale: list[float] = []  # of a table's scores: shift and scale
        if self.regression and config.recipe.label_smoothing:
            raise Refusal("recipe.label_smoothing has no meaning for scores: give recipe.label_smoothing=0")

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names by their numbers (for inference entailment, neutral, contradiction); empty for a score."""
        if self.data.source == "table":
            return () if self.data.score else self._own
        if self.data.source == "glue":
            return GLUE[self.data.task].labels
        return LABELS if self.data.source == "grammar" else NLI_LABELS

    @property
    def regression(self) -> bool:
        """Whether the label is a score (STS-B)."""
        return not self.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names of a user's own table."""
        return self.labels if self.data.source == "table" else ()

    def recall(self, class_names: Sequence[str]) -> None:
        """Sets the classes from a finished run's record, until the table is opened."""
        if self.data.source == "table" and class_names:
            self._own = tuple(class_names)

    @property
    def length(self) -> int:
        """The option data.max_length."""
        return int(self.data.max_length)

    @property
    def test_is_validation(self) -> bool:
        """Whether the evaluated set also served as validation: without a validation split, as for GLUE's."""
        return self.data.validation == 0

    @property
    def data_note(self) -> str:
        """A sentence for the banner; it gives sizes and tokenizer once the data is open."""
        if self.data.unasked and self.data.source == "grammar":
            note = _UNASKED
        elif self._made:
            note = f"Sentences of the grammar under the labels of {self.data_name}, because the data is not at hand."
        elif self.data.source == "grammar":
            note = _MADE
        else:
            shown = [one_line(name) for name in self.labels[:_SHOWN]] + ["..."] * (len(self.labels) > _SHOWN)
            kind = "a score" if self.regression else f"labels {', '.join(shown)}"
            if self.data.source == "table" and not self._parts:
                kind = "a score" if self.regression else "its labels are known when it is open"
            elif len(self.labels) > _SHOWN:
                kind = f"{len(self.labels)} {kind}"
            note = f"{self.data_name}{f' {self.task_name}' if self.task_name else ''}: {kind}."
        if not self._parts:
            return f"{note} Texts have at most {self.length} tokens."
        sizes = self.sizes()
        held = f"{sizes['validation']:,} validation, " if sizes["validation"] else "none held out for validation, "
        said = [
            say_left_out(self._reasons),
            *self._own_notes,
            say_limit(self.data.limit, "texts"),
            self._tokenizer_note,
        ]
        return f"{note} {sizes['train']:,} train, {held}{sizes['test']:,} test; {'; '.join(filter(None, said))}."

    @property
    def reading(self) -> dict[str, Any]:
        """A digest of the vocabulary, and of scores the shift and scale that the model learns them in."""
        return super().reading | ({"score": self._scale} if self._scale else {})

    def _open(self) -> None:
        """A folder without a train part can still be evaluated."""
        source = self.data.source
        train, validation, measured = self._read()
        everything = [part for part in (train, validation, *measured) if part is not None]
        self._reasons = sum((part.reasons for part in everything), Counter())
        of_training = train if train is not None else measured[0]

        def train_tokenizer() -> Any:
            return train_word_pieces([*of_training.first, *(of_training.second or [])], self.data.vocabulary)

        self.take_tokenizer(train_tokenizer)
        padding_of(self.tokenizer, self.tokenizer_named)
        limit, share = self.data.limit, self.data.validation
        if train is not None and validation is None and share:
            split = keeping_split if source == "table" else stratified_split
            kept, held = split(train.classes, share)
            if not (len(held) and len(kept)):
                raise Refusal(f"data.validation={share} of {len(train)} training texts leaves a part empty; change it")
            train, validation = train.chosen(kept), train.chosen(held)
        self._parts = {}
        if train is not None:
            self._parts["train"] = self._encode([train.chosen(balanced_limit(train.classes, limit))])
        if validation is not None and share:
            self._parts["validation"] = self._encode([validation.chosen(drawn_limit(len(validation), limit))])
        self._parts["test"] = self._encode([part.chosen(drawn_limit(len(part), limit)) for part in measured])
        check_known(self.tokenizer, self._parts["test"].ids, self.tokenizer_named)
        arrays = [array for part in self._parts.values() for array in (part.ids, part.types, part.starts, part.labels)]
        if self.data.source == "table":
            names = json.dumps([self.labels, self._own_notes[-1:] if self.regression else []])
            arrays.append(np.frombuffer(names.encode(), dtype=np.uint8))
        self.identify(*arrays)

    def _read(self) -> tuple[Examples | None, Examples | None, list[Examples]]:
        source, root = self.data.source, self.data.root
        if source == "grammar":
            return made_examples(len(LABELS))
        try:
            if source == "glue":
                train, measured = read_glue(self.data.task, root)
                return train, None, measured
            if source == "table":
                own = read_own_texts(self.data, self.read_before("score"))
                self._own, self._own_notes = own.labels, own.notes
                self._scale = [own.shift, own.scale] if self.data.score else []
                return own.train, own.validation, [own.test]
            if root is None:
                raise Refusal(
                    f"data={self.data_name} needs data.root: give data.root=<folder with train.tsv, test.tsv>"
                )
            train, dev, test = read_tsv_folder(root)
            return train, dev, [test]
        except Refusal:
            if not self.noise_allowed:
                raise
            self._made = True
            return made_examples(len(self.labels))

    def _encode(self, parts: list[Examples]) -> loading.Texts:
        second: list[str] | None = None
        if parts[0].second is not None:
            second = [text for part in parts for text in part.second or []]
        first = [text for part in parts for text in part.first]
        ids, types, starts = encode(self.tokenizer, first, second, self.length, special=True)
        numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        labels = np.concatenate([part.labels for part in parts])
        return loading.Texts(ids, types, starts, labels, self.tokenizer.pad_token_id, numbers)

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """What lies outside of the transformer's body."""
        return outside_the_body(model)

    def head_parameters(self, model: nn.Module) -> list[str]:
        """The parameters with a row for each class, or the one of a score."""
        return rows_of_classes(model, len(self.labels) or 1)

    def sizes(self) -> dict[str, int]:
        """The number of texts in each part; before `open_data` the published numbers (1,000 for a folder)."""
        if self._parts:
            return {name: len(self._parts.get(name, ())) for name in ("train", "validation", "test")}
        train = GROUPS * 3
        test: tuple[int, ...] = (TEST_GROUPS * 3,)
        if self.data.source == "glue":
            train, test = GLUE[self.data.task].train, GLUE[self.data.task].test
        elif self.data.source in ("tsv", "table"):
            train, test = 1000, (1000,)
        limit = self.data.limit
        held = int(train * self.data.validation + 0.5)
        sizes = {"train": train - held, "validation": held, "test": sum(min(one, limit or one) for one in test)}
        return {name: size if name == "test" else min(size, limit or size) for name, size in sizes.items()}

    def _part(self, name: str) -> loading.Texts:
        if not self._parts:
            raise RuntimeError("open_data() comes first")
        if name == "validation" and "validation" not in self._parts:
            name = "test"
        if name not in self._parts:
            if self.data.source == "table":
                raise Refusal("data.train is not given, so nothing can be trained: give data.train=<a file of rows>")
            raise Refusal(f"data.root={self.data.root} has no train part, so nothing can be trained: set data.root")
        return self._parts[name]

    def train_loader(self, batch_size: int, seed: int, augmentation: str, workers: int) -> DataLoader[Any]:
        """Shuffled batches, padded to their longest text; grouped by length if data.length_grouping is on."""
        dataset = self._part("train")
        lengths = dataset.lengths if self.data.length_grouping else None
        return loading.train_loader(dataset, batch_size, seed, workers, lengths)

    def evaluation_loader(self, part: str, batch_size: int, workers: int) -> DataLoader[Any]:
        """Every text of "validation" (the test set if none is held out) or "test", once and in order."""
        return evaluation_loader(self._part(part), batch_size, workers)

    def outputs(self, model: nn.Module, batch: Batch, detailed: bool = False) -> Outputs:
        """Logits, float32: (N, classes), or (N, 1) for a score.

        On request also hidden states (tokens, width), beginning with the embeddings, and attentions (pairs of tokens,
        heads), both without padding.
        """
        given = self.forward(model, batch, detailed)
        if not detailed:
            return Outputs(given.logits.float())
        # Values at padding have no meaning and depend on the other texts of the batch.
        real = batch["attention_mask"].bool()
        pairs = real[:, :, None] & real[:, None, :]
        hidden = tuple(one[real] for one in given.hidden_states)
        attentions = tuple(one.permute(0, 2, 3, 1)[pairs] for one in given.attentions)
        return Outputs(given.logits.float(), hidden, attentions)

    def loss_of(self, outputs: Outputs, batch: Batch, label_smoothing: float) -> Tensor:
        """Cross entropy, or squared error for a score; the mean over the micro-batch."""
        if self.regression:
            return functional.mse_loss(outputs.logits[:, 0], batch["label"].float())
        return functional.cross_entropy(outputs.logits, batch["label"], label_smoothing=label_smoothing)

    @torch.no_grad()
    def observe(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All (N,): int64 index and part; label; prediction (a class, or a float32 score); float32 loss."""
        logits = self.outputs(model, batch).logits
        labels = batch["label"]
        if self.regression:
            predictions = logits[:, 0]
            losses = functional.mse_loss(predictions, labels.float(), reduction="none")
        else:
            predictions = logits.argmax(1)
            losses = functional.cross_entropy(logits, labels, reduction="none")
        return {
            "index": batch["index"],
            "part": batch["part"],
            "label": labels,
            "prediction": predictions,
            "loss": losses,
        }

    def metrics(self, observations: dict[str, np.ndarray]) -> dict[str, float]:
        """The task's metrics and loss; those of MNLI's mismatched part have names of their own."""
        result: dict[str, float] = {}
        for part, ending in ((0, ""), (1, "_mismatched")):
            chosen = observations["part"] == part
            if not chosen.any():
                continue
            labels, predictions = observations["label"][chosen], observations["prediction"][chosen]
            result |= {f"{name}{ending}": measure(name, labels, predictions) for name in self.metric_names}
            result[f"loss{ending}"] = float(np.mean(observations["loss"][chosen], dtype=np.float64))
        return result
