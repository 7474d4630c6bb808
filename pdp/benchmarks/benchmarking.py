"""Shared by the benchmarks: contenders in separate processes, a description of the machine, and the file of figures.

Imports no torch until it describes the machine, because every process imports this module.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdp.errors import Refusal, Stopped


class Apart:
    """A contender in a separate process, unaffected by the memory, threads and loader workers of the others.

    In that process `make(*arguments)` must return a function that takes a number of steps and returns a dict with
    "seconds" and any other measurements; the dicts are collected in `seen`. Must be closed.
    """

    def __init__(self, make: Callable[..., Callable[[int], dict[str, Any]]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()
        self.seen: list[dict[str, Any]] = []

    def seconds(self, steps: int) -> float:
        """Lets the contender make `steps` steps, waits, and returns their wall time.

        Raises `Stopped` if the process failed; its own output says why.
        """
        try:
            self._pipe.send(steps)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise Stopped("a contender's process failed, see above") from None
        if isinstance(answer, Exception):
            raise answer
        self.seen.append(answer)
        return float(answer["seconds"])

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.terminate()


def _serve(pipe: Any, make: Callable[..., Callable[[int], dict[str, Any]]], arguments: tuple) -> None:
    try:
        measure = make(*arguments)
        while True:
            pipe.send(measure(pipe.recv()))
    except EOFError:
        return
    except (Refusal, Stopped) as error:
        pipe.send(error)


def machine(device: Any, threads: int | None = None) -> dict[str, Any]:
    """What figures depend on besides the code: device, processor, threads, load, versions, commit and the command."""
    import torch

    from pdp.environment import device_name, git_commit, versions

    return {
        "device": device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),  # processors of one name differ in them
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "torch": torch.__version__,
        "versions": versions(),
        "git_commit": git_commit(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command(sys.argv),
    }


def command(words: Sequence[str]) -> str:
    """A command line as a file of figures may keep it: of absolute paths, which are of one machine, the last part."""
    return re.sub(r"(?<![^\s,=])/(?:[^\s,=/]+/)*([^\s,=/]+)/?(?![^\s,=])", r"\1", " ".join(words))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write_figures(path: Path, where: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Writes {"machine": where, "results": results} as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def verdict(target: float | None, held: bool | None) -> str:
    """The text of a table cell that says whether a target was met."""
    return "" if target is None else f"{target:.2f}: {'held' if held else 'missed'}"
