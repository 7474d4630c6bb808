"""Times a forward of what each cell of a study ships, in turn, and its file's bytes; for accuracy against latency.

    python scripts/benchmark_latency.py conf/study/quantized_fashion.yaml data.root=<folder with FashionMNIST/raw>
    python scripts/benchmark_latency.py conf/study/quantized_mrpc.yaml data.root=<GLUE> model.pretrained=<its folder>

A forward takes as long whatever the weights are but for their zeros, so no run is needed: each cell's model is built as
train.py builds it with weights of chance, pruned at once to the cell's sparsity by magnitude, quantized with ranges of
one batch, exported as by scripts/export.py format=onnx weights=int8, checked against torch, and timed in onnxruntime.
Where openvino is installed the same files are timed in it, pruned integers also with its decompression of sparse
weights. A study in turn beside the file (<study>_in_turn.yaml) is timed with it. Rows are cells, engines and batches;
times are milliseconds of one sample, medians over rounds in which each has its turn, with quartiles. Inputs are of the
test set, noise where it is not at hand; a single text is the one of middle length. Words after the file apply to every
cell.

Writes results/benchmarks/latency_<study>.json, from which scripts/figures.py draws accuracy against latency. Run it on
a quiet machine. Exit codes: 0; 2 refused; 3 an exported model did not compute the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("benchmark_latency.py", __doc__)
    parser.add_argument("study", type=Path, help="a study file, such as conf/study/quantized_fashion.yaml")
    parser.add_argument("overrides", nargs="*", help="further words for every cell, such as data.root=/data/x")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="samples at once (1 32)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of which the median counts (15)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a forward (1)")
    parser.add_argument("--out", type=Path, help="(results/benchmarks/latency_<study>.json)")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Does what the command line asks for; returns the exit code."""
    for key in ("rounds", "threads"):
        if getattr(arguments, key) < 1:
            raise Refusal(f"--{key} {getattr(arguments, key)}: give at least 1")
    if min(arguments.batch) < 1:
        raise Refusal(f"--batch {min(arguments.batch)}: give at least 1")
    if len(set(arguments.batch)) < len(arguments.batch):
        raise Refusal(f"--batch {' '.join(map(str, arguments.batch))}: give each number once")
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)

    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures
    from pdp.benchmarks.cell_latency import timed
    from pdp.benchmarks.cell_models import cells_of
    from pdp.export.onnx import refuse_without_onnx
    from pdp.studies.study import read_study

    refuse_without_onnx()
    torch.set_num_threads(arguments.threads)
    study = read_study(arguments.study)
    beside = arguments.study.with_name(f"{arguments.study.stem}_in_turn.yaml")
    studies = [study, *([read_study(beside)] if beside.is_file() else [])]
    for one in studies:
        one.common = (*one.common, *arguments.overrides)
    cells = cells_of([cell.overrides for one in studies for cell in one.shapes()])
    if not cells:
        raise Refusal(f"{arguments.study} has no cells: name methods and seeds")
    rows = timed(cells, arguments.batch, arguments.rounds, lambda line: print(line, flush=True))
    show(rows)
    out = arguments.out or Path("results") / "benchmarks" / f"latency_{study.name}.json"
    where = machine(torch.device("cpu"), arguments.threads) | {"study": study.name, "rounds": arguments.rounds}
    write_figures(out, where, rows)
    print(f"written to {out}")
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """A table for each model and batch."""
    from rich.console import Console
    from rich.table import Table

    from pdp.export.latency import processor

    console = Console(width=None if sys.stdout.isatty() else 120)
    groups = dict.fromkeys((row["model"], row["data"], row["batch"], str(row["input"])) for row in rows)
    for group in groups:
        model, data, batch, shape = group
        table = Table(title=f"{model} on {data}, batch {batch}, input {shape}")
        table.add_column("cell", overflow="fold")
        for head in ("engine", "ms of a sample", "quartiles", "times as fast", "kB"):
            table.add_column(head, justify="left" if head == "engine" else "right")
        for row in rows:
            if (row["model"], row["data"], row["batch"], str(row["input"])) == group:
                low, high = row["quartiles_ms"]
                table.add_row(
                    row["label"],
                    row["engine"],
                    f"{row['latency_ms']:.4f}",
                    f"{low:.4f} {high:.4f}",
                    "" if row["speedup"] is None else f"{row['speedup']:.2f}",
                    f"{row['bytes'] / 1000:,.1f}",
                )
        console.print(table)
    print(processor())


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_latency", lambda: run(make_parser().parse_intermixed_args())))
