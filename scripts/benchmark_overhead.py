"""What a method adds to a training step, PDP unless named: pruned and dense steps in turn, memory, and where time goes.

    python scripts/benchmark_overhead.py --preset cpu --out results/benchmarks/overhead_cpu.json
    python scripts/benchmark_overhead.py --preset h200 --out results/benchmarks/overhead_h200.json
    python scripts/benchmark_overhead.py --model resnet18 bert_base --pattern random nm channel --batch 8 --pairs 15
    python scripts/benchmark_overhead.py --model gpt2 --length 256 --compile method=gmp      # further words of train.py
    python scripts/benchmark_overhead.py --show results/benchmarks/overhead_cpu.json         # the table of a file

Every contender is what train.py builds from its words, at the share of the run's end (--at 0.5: of its middle), on one
batch of random numbers that stays on the device. The ratio is the median over pairs, one dense and one pruned
measurement each, the order turned round every time, so that a machine's drift cancels; `again` are the quartiles of a
contender over itself in neighbouring measurements, below which nothing can be told. A measurement is --steps steps
between two waits for the device. Extra memory is the pruned step's peak less the dense one's: on a GPU what the
allocator held at most, on the CPU the same from the profiler's log of allocations, with numpy's arrays, each in a
process of its own. Its limit is in multiples of the prunable weights' bytes in the type the model computes in.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.config.groups import CONF
from pdp.errors import Refusal
from pdp.scripting import Parser, guarded

MEMORY_TARGET = 1.1
PATTERNS = ("random", "nm", "channel")
SPARSITY = {"random": 0.9, "channel": 0.5}  # that of MobileNet-v1 is the abstract's
# (model, batch, target by pattern); patterns without a target are in --pattern's hands.
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
    "h200": {
        "device": "cuda",
        "precision": "bf16",
        "channels_last": True,  # of images
        "rows": [
            ("resnet50", 256, {"random": 1.01, "nm": 1.02, "channel": 1.02}),
            ("mobilenet_v1", 512, {"random": 1.02, "nm": 1.02, "channel": 1.02}),
            ("gpt2", 8, {"random": 1.01, "nm": 1.02, "channel": 1.02}),
        ],
    },
}  # fmt: skip


def task_of(model: str) -> str:
    """model.task of a model's file; images for any other name, which timm is asked for."""
    import yaml

    path = CONF / "model" / f"{model}.yaml"
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["task"]) if path.is_file() else "images"


def words(model: str, batch: int, values: dict[str, Any]) -> list[str]:
    """What train.py would be given, but for what is pruned and how; no data is opened."""
    known, task = (CONF / "model" / f"{model}.yaml").is_file(), task_of(model)
    found = [f"model={model}"] if known else ["model=timm", f"model.name={model}"]
    if task == "images":
        found += ["data=imagenet", f"data.image_size={values['size']}"]
        found += [f"recipe.channels_last={values['channels_last']}"]
    elif task == "text_classification":
        found += ["data=glue", "data.task=mnli", f"data.max_length={values['length'] or 128}", "model.pretrained=false"]
    else:
        found += ["data=wikitext", f"data.context={values['length'] or 1024}", "model.pretrained=false"]
    # A small rate: random labels at the recipe's own could make numbers that no run meets.
    found += [f"recipe.batch_size={batch}", f"recipe.precision={values['precision']}", "recipe.lr=1e-4"]
    found += [f"recipe.compile={values['compile']}", f"device={values['device']}", "data.noise_if_absent=true"]
    return [*found, *values["words"]]


def pruned_words(model: str, pattern: str, given: list[str]) -> list[str]:
    """What is pruned, and how much of it unless the command says it."""
    if pattern == "nm" or any(word.startswith("sparsity=") for word in given):
        return [f"prune={pattern}"]
    share = 0.866 if (model, pattern) == ("mobilenet_v1", "random") else SPARSITY[pattern]
    return [f"prune={pattern}", f"sparsity={share}"]


def measure(model: str, batch: int, targets: dict[str, float | None], values: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per pattern, all against one dense contender."""
    from rich.progress import Progress

    from pdp.benchmarks.contender import Contender, own_seconds
    from pdp.benchmarks.step_memory import step_peak, step_peak_apart
    from pdp.benchmarks.step_timing import in_turn, quartiles

    base, rows = words(model, batch, values), []
    of_pruning = ("method", "sparsity", "prune", "schedule", "allocation")
    dense_words = [word for word in base if not word.startswith(of_pruning)] + ["prune=none"]
    method = next((word[7:] for word in base if word.startswith("method=")), "pdp")
    dense = Contender(dense_words, made=True)
    memory = {}
    if not values["no_memory"]:
        if values["device"] == "cuda":
            dense.seconds(values["warmup"])
            peak = step_peak
        else:
            peak = partial(step_peak_apart, threads=values["threads"])
        memory["dense"] = peak(dense_words)
    for pattern, target in targets.items():
        row: dict[str, Any] = {"model": model, "pattern": pattern, "method": method, "batch": batch}
        row |= {key: values[key] for key in ("size", "length", "precision", "channels_last", "compile", "steps", "at")}
        given = [*base, *pruned_words(model, pattern, values["words"])]
        row["words"] = given
        try:
            pruned = Contender(given, made=True, at=values["at"])
        except Refusal as refusal:
            rows.append(row | {"refused": str(refusal), "target": target, "held": None})
            print(f"{model}, {pattern}: {refusal}", file=sys.stderr)
            continue
        with Progress() as bar:
            task = bar.add_task(f"{model}, {pattern}", total=2 * (values["pairs"] + 1))
            steps = values["steps"]
            pairs = in_turn(dense, pruned, values["pairs"], steps, values["warmup"], lambda: bar.advance(task))  # noqa: B023
        bytes_each = 2 if values["precision"] in ("bf16", "fp16") else 4
        row |= {
            "dense_ms": 1000 * median(first for first, _ in pairs.rows) / steps,
            "pdp_ms": 1000 * median(second for _, second in pairs.rows) / steps,
            "ratio": median(pairs.ratios),
            "ratio_quartiles": quartiles(pairs.ratios),
            "repeat_quartiles": quartiles(pairs.repeats) if pairs.repeats else None,
            "pairs": len(pairs.rows),
            "measured_steps": [contender.steps for contender in (dense, pruned)],
            "target": target,
            "held": None if target is None else median(pairs.ratios) <= target,
            "parts_ms": {key: 1000 * median(taken) for key, taken in own_seconds(pruned).items()},
            "weights": pruned.prunable,
            "pruned_share": pruned.pruner.share,
        }
        dense.steps = 0
        del pruned
        if memory:
            memory[pattern] = peak(given)
            extra = memory[pattern]["peak"] - memory["dense"]["peak"]
            multiple = extra / (row["weights"] * bytes_each)
            row |= {
                "dense_peak_bytes": memory["dense"]["peak"],
                "pdp_peak_bytes": memory[pattern]["peak"],
                "extra_bytes": extra,
                "extra_numpy_bytes": memory[pattern]["numpy"] - memory["dense"]["numpy"],
                "extra_of_weights": multiple,
                "memory_target": MEMORY_TARGET,
                "memory_held": multiple <= MEMORY_TARGET,
            }
        rows.append(row)
    return rows


def show(results: list[dict[str, Any]]) -> None:
    """The table of a file's results; earlier files lack some of them."""
    from rich.console import Console
    from rich.table import Table

    from pdp.benchmarks.benchmarking import verdict

    table = Table("model", "pattern", "dense ms", "pruned ms", "ratio", "quartiles", "again", "target", "cut", "mask")
    for head in ("backward", "copy", "extra memory", "target"):
        table.add_column(head)

    def between(ends: list[float] | None) -> str:
        return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"

    for one in results:
        if "refused" in one:
            table.add_row(one["model"], one["pattern"], "refused")
            continue
        own = one["parts_ms"]
        extra = one.get("extra_of_weights")
        table.add_row(
            one["model"],
            one.get("pattern", "random"),
            f"{one['dense_ms']:.1f}",
            f"{one['pdp_ms']:.1f}",
            f"{one['ratio']:.3f}",
            between(one["ratio_quartiles"]),
            between(one.get("repeat_quartiles")),
            verdict(one.get("target"), one.get("held")),
            *(f"{own[key]:.2f}" if key in own else "" for key in ("cut", "mask", "backward", "copy")),
            "" if extra is None else f"{extra:.2f} x weights",
            "" if extra is None else verdict(one["memory_target"], one["memory_held"]),
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
    parser.add_argument("--batch", type=int, help="samples of a step (16, of texts 8)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side of images (224)")
    parser.add_argument("--length", type=int, help="tokens of a text (128; of GPT-2's windows 1024)")
    parser.add_argument("--at", type=float, default=1.0, help="the moment of the run, as a share of it (1, its end)")
    parser.add_argument("--pairs", type=int, default=11, help="pairs of measurements (11)")
    parser.add_argument("--steps", type=int, help="steps of a measurement (1; on a GPU 10)")
    parser.add_argument("--warmup", type=int, help="steps of each before (2; on a GPU 10)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile for both")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    parser.add_argument("--show", type=Path, help="measure nothing, print the table of such a file")
    return parser


def parsed(line: list[str] | None = None) -> argparse.Namespace:
    """The command line, over its preset."""
    parser = make_parser()
    name = parser.parse_args(line).preset
    if name:
        parser.set_defaults(**{key: value for key, value in PRESETS[name].items() if key != "rows"})
    return parser.parse_args(line)


def rows_of(arguments: argparse.Namespace) -> list[tuple[str, int, dict[str, float | None]]]:
    """Models with their batches and the patterns' targets."""
    rows = []
    for model, batch, targets in PRESETS[arguments.preset]["rows"] if arguments.preset else []:
        if arguments.model is None or model in arguments.model:
            chosen = {one: targets.get(one) for one in arguments.pattern} if arguments.pattern else targets
            rows.append((model, arguments.batch or batch, chosen))
    if not arguments.preset:
        for model in arguments.model or ["resnet50", "mobilenet_v1"]:
            batch = arguments.batch or (16 if task_of(model) == "images" else 8)
            rows.append((model, batch, dict.fromkeys(arguments.pattern or ["random"])))
    if not rows:
        names = ", ".join(row[0] for row in PRESETS[arguments.preset]["rows"])
        raise Refusal(f"--model={' '.join(arguments.model)}: --preset {arguments.preset} has {names}")
    return rows


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints a table, and writes JSON where --out names a file."""
    if arguments.show:
        if not arguments.show.is_file():
            raise Refusal(f"--show={arguments.show} is no file")
        show(json.loads(arguments.show.read_text(encoding="utf-8"))["results"])
        return 0
    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures

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
    results = []
    for model, batch, targets in rows_of(arguments):
        results += measure(model, batch, targets, vars(arguments))
        if arguments.out:  # after every model, so that a long command that is ended leaves what it has
            write_figures(arguments.out, machine(torch.device(arguments.device)), results)
    show(results)
    if arguments.out:
        print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("benchmark_overhead.py", lambda: run(parsed())))
