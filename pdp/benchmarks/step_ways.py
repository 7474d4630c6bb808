"""Other ways to run a contender's steps: compiled, with graph breaks counted, or captured in a CUDA graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from pdp.benchmarks.contender import Contender, seconds
from pdp.errors import Refusal

_BEFORE_CAPTURE = 3  # on a separate stream, as PyTorch's documentation on CUDA graphs requires


class Captured:
    """Whole steps of a contender replayed from one CUDA graph: forward, backward, optimizer and pruner.

    Decisions of the host are frozen: every step is the one that was captured. Raises `Refusal` without a GPU, and
    `RuntimeError` if something in the step cannot be captured.
    """

    def __init__(self, contender: Contender):
        if contender.device.type != "cuda":
            raise Refusal("--ways captured: a CUDA graph needs a GPU; leave it out, or give --device cuda")
        self.contender, self.device, self.pruner = contender, contender.device, contender.pruner
        for group in contender.optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_BEFORE_CAPTURE):
                contender.step()
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            contender.step()
        self.prunable, self.steps = contender.prunable, contender.steps

    def step(self) -> None:
        """One optimizer step."""
        self._graph.replay()
        self.steps += 1

    def seconds(self, steps: int = 1) -> float:
        """Wall time of `steps` steps in seconds, including the device's work."""
        return seconds(self.step, self.device, steps)


def compile_anew() -> None:
    """Drops what was compiled for earlier contenders, and makes room for a dense one beside one of every method.

    By default PyTorch keeps eight compiled forms of a module's code and runs a ninth instance uncompiled.
    """
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64


def graph_breaks(contender: Contender, steps: int) -> dict[str, Any]:
    """Runs the first steps of a compiled contender; returns the numbers of graphs and graph breaks, and reasons.

    Recompilation for other shapes or numbers makes more graphs without a break.
    """
    from torch._dynamo.utils import counters

    counters.clear()
    for _ in range(steps):
        contender.step()
    reasons: Counter[str] = Counter(counters["graph_break"])
    return {
        "graphs": int(counters["stats"].get("unique_graphs", 0)),
        "graph_breaks": sum(reasons.values()),
        "graph_break_reasons": {reason.splitlines()[0]: count for reason, count in reasons.most_common(5)},
    }
