"""The peak memory of a training step, as counted by the allocators.

On a GPU this is `torch.cuda.max_memory_allocated`. On the CPU the profiler's log of all allocations and releases is
added up, plus the arrays that numpy holds. The resident size of the process is not used, because it includes what the C
library keeps back and what oneDNN caches, which varies between runs by more than a mask takes.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

_MARK = "pdp.benchmarks.step_memory"


def allocated(
    work: Callable[[], Any], device: torch.device, prepare: Callable[[], Any] = lambda: None
) -> tuple[int, int]:
    """(peak, remaining) bytes of tensors during and after `work`, above what was held before `prepare`."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        prepare()
        torch.cuda.synchronize(device)
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        gc.collect()
        return torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile, record_function

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        prepare()
        gc.collect()
        with record_function(_MARK):
            work()
        gc.collect()
    assert log.profiler is not None and log.profiler.kineto_results is not None
    events = log.profiler.kineto_results.events()
    begun = next(one.start_ns() for one in events if one.name() == _MARK)
    held = largest = 0
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        if event.start_ns() >= begun:
            largest = max(largest, held)
        held += event.nbytes()
        if event.start_ns() >= begun:
            largest = max(largest, held)
    return largest, held


def numpy_bytes() -> int:
    """Bytes of the arrays that numpy holds, of those allocated since `tracemalloc.start()`."""
    from numpy.lib import tracemalloc_domain

    arrays = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, tracemalloc_domain)])
    return sum(trace.size for trace in arrays.traces)


def step_peak(overrides: Sequence[str], made: bool = True, threads: int | None = None) -> dict[str, int]:
    """The peak memory of a contender's step, in bytes, after two warm-up steps; and its prunable weights.

    `peak` counts parameters, optimizer, pruner, activations and gradients. On the CPU call this in a process that has
    trained nothing before; on a GPU after a contender of the same size, which has allocated the libraries' workspaces.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    from pdp.benchmarks.contender import Contender
    from pdp.config.compose import compose

    config = compose(overrides)
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        tracemalloc.start()  # as late as possible, because it slows down Python
    held: list[Contender] = []

    def begin() -> None:
        held.append(Contender(config, made))
        for _ in range(2):
            held[0].step()

    peak, _ = allocated(lambda: held[0].step(), device, begin)
    scratch = numpy_bytes() if device.type == "cpu" else 0
    tracemalloc.stop()
    return {"peak": peak + scratch, "numpy": scratch, "prunable": held[0].prunable, "steps": held[0].steps}


def step_peak_apart(overrides: Sequence[str], made: bool = True, threads: int | None = None) -> dict[str, int]:
    """`step_peak` in a separate process, in which no other contender has left anything behind."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler warns on stderr
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(step_peak, list(overrides), made, threads).result()
