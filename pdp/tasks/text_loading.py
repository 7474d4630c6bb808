"""Tokens in memory, and batches made from them: padded to the longest text of a batch, or grouped by length."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pdp.tasks.sampling import EpochBatchSampler, Key, hashed, permutation, training_loader

_POOL = 50  # batches that are sorted by length together


class Texts(Dataset[dict[str, Tensor]]):
    """Tokenized texts with labels; a batch is padded on the right to its longest text."""

    def __init__(
        self,
        ids: np.ndarray,
        types: np.ndarray,
        starts: np.ndarray,
        labels: np.ndarray,
        padding: int,
        parts: np.ndarray | None = None,
    ):
        self.ids, self.types, self.starts, self.labels, self.padding = ids, types, starts, labels, padding
        self.parts = np.zeros(len(labels), dtype=np.int64) if parts is None else parts

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each text, int64 (N,)."""
        return np.diff(self.starts)

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        indices = np.asarray([index for _, index in keys], dtype=np.int64)
        lengths = self.lengths[indices]
        shape = (len(indices), int(lengths.max(initial=1)))
        ids = np.full(shape, self.padding, dtype=np.int64)
        types, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            tokens = slice(self.starts[index], self.starts[index] + length)
            ids[row, :length], types[row, :length], mask[row, :length] = self.ids[tokens], self.types[tokens], 1
        arrays = {
            "input_ids": ids,
            "token_type_ids": types,
            "attention_mask": mask,
            "label": self.labels[indices],
            "part": self.parts[indices],
            "index": indices,
        }
        return {name: torch.from_numpy(values) for name, values in arrays.items()}


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of one row of tokens: window i begins at starts[i]; its tokens before counted[i] are context alone.

    The row may be mapped. `words` and `size` (bytes) of the whole text come with its first window. Where all windows
    are alike, as in training, batches have no labels: every token but the first is counted.
    """

    def __init__(
        self,
        ids: Any,
        starts: np.ndarray,
        ends: np.ndarray,
        counted: np.ndarray,
        padding: int,
        words: int = 0,
        size: int = 0,
    ):
        self.ids, self.starts, self.ends, self.counted, self.padding = ids, starts, ends, counted, padding
        self.words, self.size = words, size
        self.alike = bool((counted == starts + 1).all() and len(np.unique(ends - starts)) == 1)

    def __len__(self) -> int:
        return len(self.starts)

    def chosen(self, positions: np.ndarray) -> Windows:
        """Some of the windows, with an unknown number of words; shares all storage."""
        return Windows(self.ids, self.starts[positions], self.ends[positions], self.counted[positions], self.padding)

    @property
    def predicted(self) -> int:
        """The number of tokens that are predicted and counted; the first of a window never is."""
        return int((self.ends - np.maximum(self.counted, self.starts + 1)).sum())

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor]:
        indices = np.asarray([index for _, index in keys], dtype=np.int64)
        lengths = self.ends[indices] - self.starts[indices]
        shape = (len(indices), int(lengths.max(initial=1)))
        ids, labels = np.full(shape, self.padding, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            start = self.starts[index]
            ids[row, :length] = self.ids[start : self.ends[index]]
            first = max(int(self.counted[index] - start), 1)
            labels[row, first:length] = ids[row, first:length]
        arrays = {"input_ids": ids, "index": indices}
        arrays |= {"words": np.where(indices == 0, self.words, 0), "bytes": np.where(indices == 0, self.size, 0)}
        if not self.alike:
            arrays["labels"] = labels
        return {name: torch.from_numpy(values) for name, values in arrays.items()}


def training_windows(ids: Any, context: int, padding: int) -> Windows:
    """Consecutive windows of exactly `context` tokens; the rest at the end is dropped."""
    starts = np.arange(len(ids) // context, dtype=np.int64) * context
    return Windows(ids, starts, starts + context, starts + 1, padding)


def measured_windows(ids: Any, context: int, stride: int, padding: int, words: int, size: int = 0) -> Windows:
    """Windows that begin `stride` tokens apart, up to the end of the text; each token but the first is counted once.

    With `stride` equal to `context`, the first token of each window is not predicted.
    """
    starts = np.arange(max(1, -(-max(0, len(ids) - context) // stride) + 1), dtype=np.int64) * stride
    ends = np.minimum(starts + context, len(ids))
    return Windows(ids, starts, ends, np.r_[starts[:1] + 1, ends[:-1]], padding, words, size)


class LengthGroupedSampler(EpochBatchSampler):
    """An `EpochBatchSampler` whose batches hold samples of about the same length, in a new order each epoch.

    The epoch's permutation is divided into pools of 50 batches; each pool is sorted by length and divided into batches,
    and all batches are shuffled. This depends only on (seed, epoch). A short last batch, if it is used, stays last.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        super().__init__(len(lengths), batch_size, seed)
        self.lengths = lengths

    def order(self, epoch: int) -> np.ndarray:
        assert self.seed is not None
        drawn, size = permutation(self.seed, epoch, self.count), self.batch_size
        whole = self.count // size * size
        pools = [drawn[start : min(start + _POOL * size, whole)] for start in range(0, whole, _POOL * size)]
        rows = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate([np.zeros(0, np.int64), *rows]).reshape(-1, size)
        shuffled = batches[np.argsort(hashed(self.seed, epoch, np.arange(len(batches)), 1), kind="stable")]
        return np.concatenate([shuffled.reshape(-1), drawn[whole:]])


def train_loader(dataset: Any, batch_size: int, seed: int, workers: int, lengths: np.ndarray | None) -> DataLoader[Any]:
    """Shuffled batches, grouped by `lengths` if they are given; raises `Refusal` if there are too few samples."""
    if lengths is None:
        return training_loader(dataset, EpochBatchSampler(len(dataset), batch_size, seed), workers)
    return training_loader(dataset, LengthGroupedSampler(lengths, batch_size, seed), workers)
