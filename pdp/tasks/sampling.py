"""Which samples form a batch, and all random draws of the data, as pure functions of (seed, epoch, sample index)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from pdp.errors import Refusal
from pdp.ranks import process_count

SPLIT_SEED = 20230519  # not the run's seed, so that every run of a study holds out the same samples
_ORDER, _DRAW, _SPLIT, _LIMIT = range(1, 5)  # separate streams, so that draws of one kind never repeat those of another

Key = tuple[int, int]  # (epoch, index); the epoch is part of the key so that worker processes know it


def hashed(*parts: Any) -> np.ndarray:
    """A uint64 hash (SplitMix64, chained) of integers or integer arrays, broadcast together; at least 1-dim."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        word = np.atleast_1d(np.asarray(part, dtype=np.int64)).view(np.uint64)
        state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniforms(seed: int, epochs: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """`count` draws from [0, 1) for each sample, float64 (samples, count), a function of (seed, epoch, index) alone."""
    words = hashed(seed, _DRAW, epochs[:, None], indices[:, None], np.arange(count)[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the samples in an epoch, int64 (count,), a function of (seed, epoch) alone."""
    return np.argsort(hashed(seed, _ORDER, epoch, np.arange(count)), kind="stable")


def stratified_split(labels: np.ndarray, share: float, salt: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions (kept, held out).

    floor(share * n + 0.5) samples are held out, from every class its share to within one sample.
    """
    order = np.lexsort((hashed(SPLIT_SEED, _SPLIT, salt, np.arange(len(labels))), labels))
    marks = np.floor(np.arange(len(labels) + 1) * share + 0.5)
    chosen = np.diff(marks) > 0
    return np.sort(order[~chosen]), np.sort(order[chosen])


def keeping_split(labels: np.ndarray, share: float, salt: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Like `stratified_split`, but keeps one sample of a class that would lose all, so that it can be learnt."""
    kept, held = stratified_split(labels, share, salt)
    lost = np.setdiff1d(labels[held], labels[kept])
    back = [held[np.argmax(labels[held] == one)] for one in lost]
    return np.sort(np.r_[kept, back].astype(np.int64)), np.setdiff1d(held, back)


def balanced_limit(labels: np.ndarray, limit: int | None) -> np.ndarray:
    """Sorted positions of at most `limit` samples, with equal counts per class as far as there are enough."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    words = hashed(SPLIT_SEED, _LIMIT, np.arange(len(labels)))
    order = np.lexsort((words, labels))
    starts = np.r_[0, np.flatnonzero(np.diff(labels[order])) + 1]
    turn = np.arange(len(labels)) - np.repeat(starts, np.diff(np.r_[starts, len(labels)]))
    return np.sort(order[np.lexsort((words[order], turn))][:limit])


def drawn_limit(count: int, limit: int | None) -> np.ndarray:
    """Sorted positions of at most `limit` of `count` samples, drawn at random: classes roughly keep their shares."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.argsort(hashed(SPLIT_SEED, _LIMIT, np.arange(count)), kind="stable")[:limit])


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) keys; shuffled by (seed, epoch), or in order if there is no seed.

    A batch here is the micro-batch of all processes together. accelerate splits it, with
    `DataLoaderConfiguration(split_batches=True, even_batches=False)`: of P ranks, rank k takes the k-th of P equal
    parts of every batch, so the ranks together see exactly the samples that a single process would see. When shuffled,
    a short last batch is dropped unless it is the only one; in order, it is kept.

    Before each pass call `set_epoch(epoch, start_batch)` here, or `pdp.tasks.sampling.set_epoch(loader, ...)`, which
    finds this sampler however the loader was wrapped. Workers need not be told, because each key carries its epoch.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None = None):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.drop_last = seed is not None and count >= batch_size  # accelerate reads this attribute
        self.epoch = 0
        self.start_batch = 0
        self._told = False

    def set_epoch(self, epoch: int, start_batch: int | None = None) -> None:
        """Sets the epoch of the next pass; `start_batch` is its first batch and applies to that pass only (default 0).

        After a call with a `start_batch`, calls without one are ignored: accelerate makes such a call when a pass
        begins, with its own count of completed passes, which is wrong after a resume and after a pass that was cut
        short.
        """
        if start_batch is None and self._told:
            return
        self._told = start_batch is not None
        self.epoch, self.start_batch = epoch, start_batch or 0

    def order(self, epoch: int) -> np.ndarray:
        """The samples in the order in which an epoch's batches take them, int64 (count,)."""
        return np.arange(self.count) if self.seed is None else permutation(self.seed, epoch, self.count)

    def __len__(self) -> int:
        """The number of batches in a whole epoch, even if the next pass starts later in it."""
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        # A generator on purpose: a loader with workers creates two iterators per pass and draws only from the second.
        epoch, first, self.start_batch = self.epoch, self.start_batch, 0
        order = self.order(epoch)
        for batch in range(first, len(self)):
            yield [(epoch, int(i)) for i in order[batch * self.batch_size : (batch + 1) * self.batch_size]]


def set_epoch(loader: DataLoader[Any], epoch: int, start_batch: int = 0) -> None:
    """Sets the epoch and first batch of the next pass over a loader of ours, before or after accelerate's `prepare`."""
    sampler: Any = loader.batch_sampler
    while not isinstance(sampler, EpochBatchSampler):
        sampler = sampler.batch_sampler
    sampler.set_epoch(epoch, start_batch)


def training_loader(dataset: Any, sampler: EpochBatchSampler, workers: int) -> DataLoader[Any]:
    """A loader of the sampler's batches with persistent workers; raises `Refusal` if a process would have no sample."""
    processes = process_count()
    if not len(dataset) or (processes > 1 and len(dataset) < sampler.batch_size):
        raise Refusal(
            f"a batch of {sampler.batch_size} over {processes} processes needs at least that many training samples, "
            f"there are {len(dataset)}: lower recipe.batch_size, or give more data"
        )
    return _loader(dataset, sampler, workers, persistent=True)


def evaluation_loader(dataset: Any, batch_size: int, workers: int) -> DataLoader[Any]:
    """A loader of every sample, once and in order."""
    return _loader(dataset, EpochBatchSampler(len(dataset), batch_size), workers, persistent=False)


def _whole(batch: Any) -> Any:
    """The collate function for data sets that already return whole batches."""
    return batch


def _loader(dataset: Any, sampler: EpochBatchSampler, workers: int, persistent: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # workers share memory and signal handlers
        collate_fn=_whole,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=persistent and workers > 0,
        generator=torch.Generator(),  # without it each pass would draw from the global RNG
    )
