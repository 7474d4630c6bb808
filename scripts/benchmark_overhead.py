"""Measures what a method (by default PDP) adds to a training step: time against dense steps, memory, and a profile.

    python scripts/benchmark_overhead.py --preset cpu --out results/benchmarks/overhead_cpu.json
    python scripts/benchmark_overhead.py --preset gpu --out results/benchmarks/overhead_gpu.json
    python scripts/benchmark_overhead.py --model resnet18 bert_base --pattern random nm channel --batch 8 --pairs 15
    python scripts/benchmark_overhead.py --model gpt2 --length 256 --compile method=gmp      # further words of train.py
    python scripts/benchmark_overhead.py --show results/benchmarks/overhead_cpu.json         # the table of a file

Every contender is what train.py builds from its arguments, at the share of the end of the run (--at 0.5: of its
middle), on one batch of random numbers that stays on the device. The ratio is the median over pairs of one dense and
one pruned measurement, in reversed order every other time, so that a drift of the machine cancels out. `again` gives
the quartiles of a contender's ratio to itself in successive measurements; smaller differences are noise. A measurement
is --steps steps between two waits for the device. Extra memory is the peak of the pruned step minus that of the dense
one: on a GPU as counted by the allocator, on the CPU from the profiler's log of allocations plus numpy's arrays, each
in a separate process. Its limit is a multiple of the prunable weights' bytes in the dtype that the model computes in.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.benchmarks.measured_words import PATTERNS, WAYS, task_of, way_of
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS
from pdp.scripting import Parser, guarded

# (model, batch, target by pattern); patterns without a target are chosen by --pattern.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "device": "cpu",
        "threads": 2,
        "rows": [
            ("resnet50", 16, {"random": 1.03}),
            ("bert_base", 8, {"random": 1.05}),
            ("mobilenet_v1", 16, {"random": None}),
        ],
    },
    "gpu": {
        "device": "cuda",
        "precision": "bf16",
        "channels_last": True,  # for image models
        "rows": [
            ("resnet50", 256, {"random": 1.01, "nm": 1.02, "channel": 1.02}),
            ("mobilenet_v1", 512, {"random": 1.02, "nm": 1.02, "channel": 1.02}),
            ("gpt2", 8, {"random": 1.01, "nm": 1.01, "channel": 1.02}),
        ],
    },
}  # fmt: skip


def show(results: list[dict[str, Any]]) -> None:
    """Prints the table of a file's results; files of earlier versions lack some columns."""
    from rich.console import Console
    from rich.table import Table

    from pdp.benchmarks.benchmarking import verdict

    table = Table(
        "model",
        "method",
        "pattern",
        "way",
        "dense ms",
        "pruned ms",
        "ratio",
        "quartiles",
        "again",
        "target",
        "cut",
        "mask",
    )
    for head in ("backward", "copy", "extra memory", "target", "breaks"):
        table.add_column(head)

    def between(ends: list[float] | None) -> str:
        return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"

    for one in results:
        if "refused" in one:
            table.add_row(one["model"], one.get("method", "pdp"), one["pattern"], way_of(one), "refused")
            continue
        own = one["parts_ms"]
        extra = one.get("extra_of_weights")
        table.add_row(
            one["model"],
            one.get("method", "pdp"),
            one.get("pattern", "random"),
            way_of(one),
            f"{one['dense_ms']:.1f}",
            f"{one['pdp_ms']:.1f}",
            f"{one['ratio']:.3f}",
            between(one["ratio_quartiles"]),
            between(one.get("repeat_quartiles")),
            verdict(one.get("target"), one.get("held")),
            *(f"{own[key]:.2f}" if key in own else "" for key in ("cut", "mask", "backward", "copy")),
            "" if extra is None else f"{extra:.2f} x weights",
            "" if extra is None else verdict(one["memory_target"], one["memory_held"]),
            *(str(one[key]["graph_breaks"]) for key in ("pruned_graphs",) if key in one),
        )
    Console(width=None if sys.stdout.isatty() else 190).print(table)
    print("cut, mask, backward: the method's own work in a step, ms; copy: all prunable weights copied once")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("benchmark_overhead.py", __doc__)
    parser.add_argument("words", nargs="*", help="further words of train.py for every contender, as recipe.ema=0.999")
    parser.add_argument("--preset", choices=[*PRESETS], help="the rows that have targets; other options win over it")
    parser.add_argument("--model", nargs="+", help="this project's models or any timm model, by name")
    parser.add_argument("--pattern", nargs="+", choices=PATTERNS, help="what is pruned (random)")
    parser.add_argument(
        "--method", nargs="+", choices=[*OPTIONS, "all"], help="a row each, where it needs another pattern with its own"
    )
    parser.add_argument("--batch", type=int, help="samples of a step (16, of texts 8)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side of images (224)")
    parser.add_argument("--length", type=int, help="tokens of a text (128; of GPT-2's windows 1024)")
    parser.add_argument("--at", type=float, default=1.0, help="the moment of the run, as a share of it (1, its end)")
    parser.add_argument("--target", type=float, help="the largest ratio that counts as held, where no preset says it")
    parser.add_argument("--pairs", type=int, default=11, help="pairs of measurements (11)")
    parser.add_argument("--steps", type=int, help="steps of a measurement (1; on a GPU 10)")
    parser.add_argument("--warmup", type=int, help="steps of each before (2; on a GPU 10)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both; graph breaks are told")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], help="of making the steps of both, one after another")
    parser.add_argument("--profile", action="store_true", help="in the file, where both contenders' time goes")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--show", type=Path, help="measure nothing, print the table of such a file")
    return parser


def parsed(line: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line, with its preset's values as defaults."""
    parser = make_parser()
    name = parser.parse_args(line).preset
    if name:
        parser.set_defaults(**{key: value for key, value in PRESETS[name].items() if key != "rows"})
    return parser.parse_args(line)


def rows_of(arguments: argparse.Namespace) -> list[tuple[str, int, dict[str, float | None]]]:
    """The models with their batch sizes and the patterns' targets."""
    rows = []
    for model, batch, targets in PRESETS[arguments.preset]["rows"] if arguments.preset else []:
        if arguments.model is None or model in arguments.model:
            chosen = {one: targets.get(one) for one in arguments.pattern} if arguments.pattern else targets
            rows.append((model, arguments.batch or batch, chosen))
    if not arguments.preset:
        for model in arguments.model or ["resnet50", "mobilenet_v1"]:
            batch = arguments.batch or (16 if task_of(model) == "images" else 8)
            rows.append((model, batch, dict.fromkeys(arguments.pattern or ["random"], arguments.target)))
    if not rows:
        names = ", ".join(row[0] for row in PRESETS[arguments.preset]["rows"])
        raise Refusal(f"--model={' '.join(arguments.model)}: --preset {arguments.preset} has {names}")
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints a table, and writes JSON if --out names a file."""
    if arguments.show:
        if not arguments.show.is_file():
            raise Refusal(f"--show={arguments.show} is no file")
        show(json.loads(arguments.show.read_text(encoding="utf-8"))["results"])
        return 0
    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures
    from pdp.benchmarks.overhead import measure

    cuda = torch.cuda.is_available()
    if arguments.device == "cuda" and not cuda:
        raise Refusal("--device=cuda: no CUDA device is at hand; give --device cpu")
    arguments.device = arguments.device or ("cuda" if cuda else "cpu")
    on_gpu = arguments.device == "cuda"
    arguments.steps = arguments.steps or (10 if on_gpu else 1)
    arguments.warmup = arguments.warmup or (10 if on_gpu else 2)
    for key in ("pairs", "steps", "warmup", "threads"):
        if getattr(arguments, key) is not None and getattr(arguments, key) < 1:
            raise Refusal(f"--{key}={getattr(arguments, key)}: give at least 1")
    if not 0 < arguments.at <= 1:
        raise Refusal(f"--at={arguments.at}: give a share of the run above 0, at most 1")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.method and "all" in arguments.method:
        arguments.method = [name for name in OPTIONS if name != "dense"]
    results: list[dict[str, Any]] = []
    ways = [WAYS[way] for way in arguments.ways or ("compiled" if arguments.compile else "plain",)]

    def tell(rows: list[dict[str, Any]]) -> None:
        if arguments.out:  # written after every row, so that a long command that is stopped leaves its results
            write_figures(arguments.out, machine(torch.device(arguments.device)), [*results, *rows])

    for model, batch, targets in rows_of(arguments):
        for compiled, captured in ways:
            how = {"compile": compiled, "captured": captured, "tell": tell}
            how["profile"] = arguments.profile and not captured  # a replayed graph has no operations on the host
            try:
                results += measure(model, batch, targets, vars(arguments) | how)
            except RuntimeError as error:
                print(f"{model}: {error}", file=sys.stderr)
                refused = {"model": model, "pattern": "", "batch": batch, "compile": compiled, "captured": captured}
                results.append(refused | {"refused": f"dense: {error}", "target": None, "held": None})
            tell([])
    show(results)
    if arguments.out:
        print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("benchmark_overhead.py", lambda: run(parsed())))
