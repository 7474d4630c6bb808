"""A teacher's logits of every training sample, computed once, stored on the disk, and read by sample index."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from pdp.config.schema import Config
from pdp.runs.record import write_json
from pdp.tasks.sampling import Key
from pdp.tasks.task import Batch, Task

_SAY_SECONDS = 10.0  # between two lines of progress


class LogitsCache:
    """float32 (samples, classes) on the disk; each process computes and writes its part and reads all parts."""

    def __init__(self, folder: Path, config: Config, task: Task, teacher: str, accelerator: Accelerator):
        self.folder, self.config, self.task, self.accelerator = folder, config, task, accelerator
        self.count, parts = task.sizes()["train"], accelerator.num_processes
        self.bounds = [self.count * part // parts for part in range(parts + 1)]
        of = [teacher, task.data_fingerprint, self.count, config.recipe.precision, config.data.validation, parts]
        self.fingerprint = hashlib.sha256(json.dumps(of).encode()).hexdigest()
        self._parts: list[np.ndarray] = []

    def path(self, part: int) -> Path:
        """The file of a part; its fingerprint is stored next to it."""
        return self.folder / f"teacher_logits-{part}.npy"

    def fill(self, logits_of: Callable[[Batch], Tensor], report: Callable[[str], None]) -> None:
        """Computes this process's part unless it is complete already; raises `OSError` if the disk is full."""
        rank = self.accelerator.process_index
        if self._is_whole(rank):
            report("the teacher's logits are cached already")
        else:
            self._write(rank, logits_of, report)
        self.accelerator.wait_for_everyone()
        self._parts = [np.load(self.path(part), mmap_mode="r") for part in range(len(self.bounds) - 1)]

    def _is_whole(self, part: int) -> bool:
        try:
            mark = json.loads(self.path(part).with_suffix(".json").read_text(encoding="utf-8"))
            rows = np.load(self.path(part), mmap_mode="r")  # fails if the file is truncated
        except (OSError, ValueError, EOFError):
            return False
        return mark == {"fingerprint": self.fingerprint} and len(rows) == self.bounds[part + 1] - self.bounds[part]

    def _write(self, part: int, logits_of: Callable[[Batch], Tensor], report: Callable[[str], None]) -> None:
        first, end = self.bounds[part], self.bounds[part + 1]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(part)
        beside = path.with_name(f".{path.name}")
        done, started = first, time.perf_counter()
        said = started
        with beside.open("wb") as file:
            for keys, batch in self._batches(first, end):
                logits = logits_of(batch).float().cpu().numpy()
                rows = np.full((len(keys), logits.shape[1]), np.nan, dtype="<f4")  # NaN remains for images left out
                rows[batch["index"].cpu().numpy() - done] = logits
                if done == first:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (end - first, logits.shape[1])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(rows.tobytes())
                done += len(keys)
                if (now := time.perf_counter()) - said > _SAY_SECONDS:
                    left = (now - started) / (done - first) * (end - done)
                    report(f"teacher's logits: {done - first:,} of {end - first:,} samples, {left:.0f} s left")
                    said = now
        beside.replace(path)
        write_json(path.with_suffix(".json"), {"fingerprint": self.fingerprint})
        report(f"the teacher's logits of {end - first:,} samples are cached in {self.folder}")

    def _batches(self, first: int, end: int) -> Iterator[tuple[list[Key], Batch]]:
        """Batches of the training samples first, ..., end - 1 in order, each with the keys that it was asked for."""
        processes = self.accelerator.num_processes
        shuffled = self.task.train_loader(processes, self.config.seed, "none", 0)
        size = max(1, self.config.recipe.batch_size // processes)
        keys = [[(0, index) for index in range(at, min(at + size, end))] for at in range(first, end, size)]
        ordered: DataLoader[Any] = DataLoader(
            shuffled.dataset,
            batch_sampler=keys,
            num_workers=self.config.data.workers,
            multiprocessing_context="fork" if self.config.data.workers else None,
            collate_fn=shuffled.collate_fn,
            generator=torch.Generator(),  # without it the pass would draw from the global RNG
        )
        for asked, batch in zip(keys, ordered, strict=True):
            yield asked, {name: values.to(self.accelerator.device) for name, values in batch.items()}

    def rows(self, index: Tensor) -> Tensor:
        """The logits of these samples, float32 (N, classes), on the device of `index`."""
        wanted = index.cpu().numpy()
        part = np.searchsorted(self.bounds, wanted, side="right") - 1
        rows = np.empty((len(wanted), self._parts[0].shape[1]), dtype=np.float32)
        for number in np.unique(part):
            here = part == number
            rows[here] = self._parts[number][wanted[here] - self.bounds[number]]
        return torch.from_numpy(rows).to(index.device)
