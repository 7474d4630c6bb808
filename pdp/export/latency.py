"""What one forward takes: contenders timed in turn, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

_BLOCK = 0.01  # seconds of calls that are timed at once
_INSTRUCTIONS = {"avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX", "asimddp": "dot products"}


def in_turn(contenders: Mapping[str, Callable[[], object]], rounds: int = 9, seconds: float = 2.0) -> dict[str, float]:
    """Milliseconds of a call of each, the median of `rounds_of`."""
    return {name: median(times) for name, times in rounds_of(contenders, rounds, seconds).items()}


def rounds_of(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 9, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Milliseconds of a call of each in every round; in a round every one has its turn, short calls many at once.

    No more rounds begin after `seconds` for each contender; three are made whatever they take.
    """
    calls: dict[str, int] = {}
    for name, call in contenders.items():
        call()
        begun = time.perf_counter()
        call()
        calls[name] = max(1, int(_BLOCK / max(1e-7, time.perf_counter() - begun)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds * len(contenders)
    for number in range(rounds):
        if number >= 3 and time.perf_counter() > end:
            break
        for name, call in contenders.items():
            begun = time.perf_counter()
            for _ in range(calls[name]):
                call()
            found[name].append(1000 * (time.perf_counter() - begun) / calls[name])
    return found


def processor() -> str:
    """The processor, how many threads torch takes, and its instructions for products of integers."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    known = [words for flag, words in _INSTRUCTIONS.items() if flag in flags]
    threads = torch.get_num_threads()
    integers = f"integer products by {' and '.join(known)}" if known else "no instructions for integer products known"
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, {integers}"
