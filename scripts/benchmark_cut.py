"""Measures PDP's cut and mask by themselves: for more weights, for more layers, and beside another PDP layer.

    python scripts/benchmark_cut.py --out results/benchmarks/cut_cpu.json
    python scripts/benchmark_cut.py --device cuda --millions 10 100 300
    python scripts/benchmark_cut.py --peer /path/to/an/environment/bin/python    # one with torch and pquant-ml 0.1.0

A pass computes the cut of every layer and the effective weights, as in a training step (float32, 90 %, tau = 1e-4);
between passes every weight moves by a ten-thousandth of its value. The targets are for such a pass; `backward` adds the
gradient of the weights. All cases of a row are timed alternately in this process, in reversed order every other time.
`layers` have a million weights each, `one layer` has all of them; then follows a fixed total in few and in many layers.
The peer is timed in a separate process on one weight of 2048 x 2048 at its own threshold, and its mask is compared with
ours.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal, Stopped
from pdp.scripting import Parser, guarded

MILLION = 1_000_000
SHARE = 0.9
TEMPERATURE = 1e-4
MOVE = 1e-4  # relative change of every weight from one pass to the next
SIDE = 2048  # rows and columns of the weight for the comparison with the peer
FLAT, MANY, PEER = 1.2, 1.2, 25.0  # targets: growth of cost per weight, many layers over few, speed against the peer


def passes(sizes: list[int], device: str, backward: bool) -> Callable[[], float]:
    """A function that returns the seconds of one pass over layers of these sizes; each pass follows a small change."""
    import torch

    from pdp.masks.cut import count_pruned
    from pdp.patterns import make_pattern
    from pdp.survey import find_layers

    generator = torch.Generator(device).manual_seed(0)
    model = torch.nn.ModuleList(torch.nn.Linear(size, 1, bias=False, device="meta") for size in sizes)
    for module, size in zip(model, sizes, strict=True):
        weight = torch.randn(1, size, generator=generator, device=device).mul_(0.02)
        module.weight = torch.nn.Parameter(weight)
    layers, pattern = find_layers(model), make_pattern("random")
    model.requires_grad_(backward)  # only now, because frozen layers are not pruned
    weights = [layer.weight for layer in layers]
    upstream = [torch.ones_like(weight) for weight in weights] if backward else []
    moves = itertools.cycle((1 + MOVE, 1 - MOVE))
    for layer, size in zip(layers, sizes, strict=True):
        layer.pruned = count_pruned(SHARE, size)

    def one_pass() -> None:
        for layer, cut in zip(layers, pattern.cuts(layers), strict=True):
            layer.state["cut"] = cut
        pattern.begin_forward(layers, TEMPERATURE)
        effective = [pattern.soft_weight(layer, layer.members[0], layer.weight, TEMPERATURE) for layer in layers]
        pattern.end_forward()
        if backward:
            torch.autograd.backward(effective, upstream)
            for weight in weights:
                weight.grad = None

    def seconds() -> float:
        move = next(moves)
        with torch.no_grad():
            for weight in weights:
                weight.mul_(move)
        started = time.perf_counter()
        one_pass()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return seconds


class Peer:
    """pquant-ml's PDP layer in a process that uses another environment."""

    def __init__(self, python: Path, weight: Path, share: float, threads: int, mask: Path):
        script = Path(__file__).with_name("pquant_layer.py")
        words = [str(python), str(script), str(weight), repr(share), repr(TEMPERATURE), str(threads), str(mask)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._answer()

    def seconds(self, kind: str) -> float:
        """Seconds of one pass, "forward" or "backward"."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} 1\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise Stopped("the peer's process failed, see above")
        return line


def in_rounds(cases: list[tuple[str, Callable[[], float]]], rounds: int, tell: Callable[[], None]) -> dict[str, Any]:
    """Seconds of every case in every round, in reversed order every other round; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name, _ in cases}
    for number in range(rounds + 1):
        for name, seconds in cases if number % 2 else reversed(cases):
            spent = seconds()
            if number:
                taken[name].append(spent)
            tell()
    return taken


def sizes_rows(millions: list[int], device: str, rounds: int, tell: Callable[[], None]) -> list[dict[str, Any]]:
    """Nanoseconds per weight for growing totals: in layers of a million weights, and in one layer."""
    rows = []
    for shape in ("layers", "one layer"):
        for backward in (False, True):
            cases = []
            for total in millions:
                sizes = [MILLION] * total if shape == "layers" else [total * MILLION]
                cases.append((str(total), passes(sizes, device, backward)))
            taken = in_rounds(cases, rounds, tell)
            costs = {total: median(taken[str(total)]) / (total * MILLION) * 1e9 for total in millions}
            growth = costs[max(millions)] / costs[min(millions)]
            rows.append(
                {
                    "what": shape,
                    "pass": "backward" if backward else "forward",
                    "nanoseconds_a_weight": costs,
                    "largest_over_smallest": growth,
                    "seconds": taken,
                    "target": None if backward else FLAT,
                    "held": None if backward else growth <= FLAT,
                }
            )
    return rows


def layers_rows(total: int, counts: list[int], device: str, rounds: int, tell: Callable) -> list[dict[str, Any]]:
    """The same total of weights in few layers and in many."""
    rows = []
    for backward in (False, True):
        cases = [(str(count), passes([total // count] * count, device, backward)) for count in counts]
        taken = in_rounds(cases, rounds, tell)
        pairs = zip(taken[str(max(counts))], taken[str(min(counts))], strict=True)
        ratio = median(many / few for many, few in pairs)
        rows.append(
            {
                "what": f"{max(counts)} layers over {min(counts)}, {total // MILLION} M",
                "pass": "backward" if backward else "forward",
                "weights": total,
                "ratio": ratio,
                "seconds": taken,
                "target": None if backward else MANY,
                "held": None if backward else ratio <= MANY,
            }
        )
    return rows


def peer_rows(python: Path, rounds: int, threads: int, tell: Callable[[], None]) -> list[dict[str, Any]]:
    """Comparison with the peer on one weight, and whether the masks agree; raises `Stopped` if its process fails."""
    import numpy as np
    import torch

    from pdp.masks.cut import cut_at
    from pdp.masks.soft import soft_mask

    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.02
    units = weight.numel()
    with tempfile.TemporaryDirectory() as folder:
        file, left = Path(folder) / "weight.npy", Path(folder) / "mask.npy"
        np.save(file, weight.numpy())
        peer = Peer(python, file, SHARE, threads, left)
        try:
            # The peer keeps int((1 - r) * n) of n weights, with r in float32; like ours, its cut is midway between two
            # magnitudes.
            kept = int((1 - float(torch.tensor(SHARE))) * float(units))
            ours = soft_mask(weight, cut_at(weight.abs(), units - kept), TEMPERATURE)
            theirs = torch.from_numpy(np.load(left))
            rows = []
            for kind in ("forward", "backward"):
                mine = passes([units], "cpu", kind == "backward")
                taken = in_rounds([("pdp", mine), ("peer", partial(peer.seconds, kind))], rounds, tell)
                ratio = median(peers / own for own, peers in zip(taken["pdp"], taken["peer"], strict=True))
                target = PEER if kind == "forward" else None
                rows.append(
                    {
                        "what": f"{SIDE} x {SIDE}, times as fast as pquant-ml {peer.version}",
                        "pass": kind,
                        "ratio": ratio,
                        "seconds": taken,
                        "largest_difference_of_masks": float((ours - theirs).abs().max()),
                        "hard_masks_equal": bool(((ours >= 0.5) == (theirs >= 0.5)).all()),
                        "target": target,
                        "held": None if target is None else ratio >= target,
                    }
                )
        finally:
            peer.close()
    return rows


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("benchmark_cut.py", __doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[10, 30, 100, 300], help="weights (10 30 100 300)")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 1000], help="layers of one total (10 1000)")
    parser.add_argument("--total", type=int, nargs="+", default=[30, 300], help="millions in those layers (30 300)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each case, in turn (7)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on the CPU (2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peer", type=Path, help="the python of an environment with torch and pquant-ml")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints a table, and writes JSON if --out names a file."""
    for key in ("rounds", "threads"):
        if getattr(arguments, key) < 1:
            raise Refusal(f"--{key}={getattr(arguments, key)}: give at least 1")
    for key in ("millions", "layers", "total"):
        if min(getattr(arguments, key)) < 1:
            raise Refusal(f"--{key}={min(getattr(arguments, key))}: give at least 1")
    if arguments.peer and not arguments.peer.is_file():
        raise Refusal(f"--peer={arguments.peer}: no such file; name the python of an environment with pquant-ml")
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from pdp.benchmarks.benchmarking import machine, verdict, write_figures
    from pdp.environment import keep_freed_memory

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise Refusal("--device=cuda: there is no such device here; give --device cpu")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # else the allocation of new memory would be timed
    cases = (
        4 * len(arguments.millions) + 2 * len(arguments.layers) * len(arguments.total) + (4 if arguments.peer else 0)
    )
    with Progress() as bar:
        task = bar.add_task("passes", total=cases * (arguments.rounds + 1))

        def tell() -> None:
            bar.advance(task)

        rows = sizes_rows(sorted(arguments.millions), arguments.device, arguments.rounds, tell)
        for total in arguments.total:
            rows += layers_rows(total * MILLION, sorted(arguments.layers), arguments.device, arguments.rounds, tell)
        if arguments.peer:
            rows += peer_rows(arguments.peer, arguments.rounds, arguments.threads, tell)
    table = Table("what", "pass", "ns a weight", "ratio", "target")
    for row in rows:
        costs = row.get("nanoseconds_a_weight", {})
        ratio = row.get("ratio", row.get("largest_over_smallest"))
        told = ", ".join(f"{cost:.2f} at {total} M" for total, cost in costs.items())
        table.add_row(row["what"], row["pass"], told, f"{ratio:.2f}", verdict(row["target"], row["held"]))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.peer:
        same = "equal" if rows[-1]["hard_masks_equal"] else "NOT equal"
        print(f"masks: {same}; soft ones differ by {rows[-1]['largest_difference_of_masks']:.1e} at most")
    if arguments.out:
        where = machine(torch.device(arguments.device), threads=arguments.threads)
        write_figures(arguments.out, where | {"share": SHARE, "temperature": TEMPERATURE}, rows)
        print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("benchmark_cut.py", lambda: run(make_parser().parse_args())))
