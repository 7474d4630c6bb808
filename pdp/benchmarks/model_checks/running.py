"""Runs a check over many models, each in a separate process with a time limit, and writes a line of JSON for each."""

from __future__ import annotations

import importlib
import json
import multiprocessing as mp
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdp.benchmarks.model_checks import PARTS

_WAITING = 20  # wall time that a model may take, as a multiple of its limit of processor time


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The results so far, by model."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return {line["model"]: line for line in lines}


def forget(path: Path, models: Sequence[str]) -> None:
    """Removes the results of these models."""
    kept = [line for name, line in read(path).items() if name not in models]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def run(
    part: str, models: Sequence[str], path: Path, limit: float, workers: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Checks the models that have no line in `path` yet and returns the results of all.

    `limit` is in seconds of processor time per model.
    """
    done = read(path)
    waiting = [name for name in models if name not in done]
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "numpy", "pandas", PARTS[part]])
    path.parent.mkdir(parents=True, exist_ok=True)
    running: list[tuple[str, Any, Any, float]] = []
    while waiting or running:
        while waiting and len(running) < workers:
            mine, theirs = context.Pipe(duplex=False)
            name = waiting.pop(0)
            process = context.Process(target=_checked, args=(part, name, theirs, limit), daemon=True)
            process.start()
            theirs.close()
            running.append((name, process, mine, time.monotonic()))
        for one in list(running):
            name, process, answers, start = one
            seconds = time.monotonic() - start
            result: dict[str, Any] | None = None
            if answers.poll(0.05):
                try:
                    result = answers.recv()
                except EOFError:
                    process.join()
                    late = process.exitcode == -signal.SIGXCPU
                    said = f"no end after {limit:.0f} s" if late else f"the process ended with {process.exitcode}"
                    result = {"status": "late" if late else "crashed", "wrong": [said]}
            elif seconds > _WAITING * limit:
                result = {"status": "late", "wrong": [f"no end after {seconds:.0f} s by the clock"]}
            if result is not None:
                process.kill()
                process.join()
                running.remove(one)
                done[name] = {"model": name, "seconds": round(seconds, 1)} | result
                with path.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(done[name]) + "\n")
                say(f"{result['status']:8} {seconds:6.1f} s  {name}  {'; '.join(result.get('wrong', []))[:160]}")
    return done


def _checked(part: str, name: str, answers: Any, limit: float) -> None:
    import torch

    # Processor time, because the load of the machine says nothing about the model.
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 10))
    start = time.process_time()
    torch.set_num_threads(1)
    try:
        result = importlib.import_module(PARTS[part]).check(name)
    except Exception as error:  # a model may raise anything; finding that out is the purpose
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:200]
        result = {
            "status": "crashed",
            "wrong": [f"{type(error).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"],
        }
    answers.send({"seconds": round(time.process_time() - start, 1)} | result)
