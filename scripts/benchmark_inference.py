"""Measures inference of dense and exported models alternately, beside their MACs: theory and practice in one table.

    python scripts/benchmark_inference.py --model resnet50 --macs 0.5              # channels slimmed to half the MACs
    python scripts/benchmark_inference.py --model resnet50 --macs 0.5 --round-to 8 # and with channels in multiples of 8
    python scripts/benchmark_inference.py --run results/runs/<run>/seed0           # a finished channel run, as exported
    python scripts/benchmark_inference.py --model resnet18 --macs 0.5 --onnx --out results/benchmarks/inference.json

Speed depends on shapes and not on values, so without --run random weights determine the channels to remove. Figures are
medians over rounds in which each model runs once, so that a drift of the machine affects all models equally.
Convolutional models run in both memory layouts, each compared with the dense model in the same layout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp import Pruner, count_macs
from pdp.benchmarks.benchmarking import machine
from pdp.config.schema import ModelConfig
from pdp.cost import count_parameters
from pdp.errors import Refusal
from pdp.export.onnx import save_onnx
from pdp.export.slim import slim
from pdp.scripting import Parser, guarded
from pdp.tasks.image_models import NAMES, build_model
from pdp.training.export_run import ExportedRun


def pruned_model(name: str, share: float, example: torch.Tensor, round_to: int = 1) -> nn.Module:
    """A model with random weights whose channels are pruned until `share` of its multiply-adds are left."""
    torch.manual_seed(0)
    model: nn.Module = build_model(
        ModelConfig(name=name, task="images", library="pdp" if name in NAMES else "timm"), 1000
    )[0]
    pruner = Pruner(
        model,
        pattern="channel",
        sparsity=1 - share,
        epochs=1,
        schedule={"warmup": "0ep", "ramp": "1ep"},
        allocation="uniform",
        example_input=example,
        pattern_options={"target": "macs", "round_to": round_to},
    )
    pruner.start_epoch(0)
    pruner.finalize()
    return model.eval()


def onnx_runner(model: nn.Module, inputs: torch.Tensor, folder: Path, threads: int) -> Callable[[], Any]:
    """A function that calls the exported model in onnxruntime."""
    import onnxruntime

    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    save_onnx(model, inputs, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.numpy()}
    return lambda: session.run(None, feed)


def torch_runner(model: nn.Module, inputs: torch.Tensor) -> Callable[[], Any]:
    """A function that calls the model in torch and waits for the device."""

    def call() -> None:
        with torch.inference_mode():
            model(inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize()

    return call


def measure(runners: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each runner; in every round each runs once."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for call in runners.values():
        call(), call()
    for _ in track(range(rounds), "rounds"):
        for name, call in runners.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON if --out names a file."""
    parser = Parser("benchmark_inference.py", __doc__)
    parser.add_argument("--model", default="resnet50", help="this project's models or any timm model, by name")
    parser.add_argument("--macs", type=float, default=0.5, help="share of the dense multiply-adds that stays")
    parser.add_argument("--round-to", type=int, help="one more slim model, whose channels are multiples of this")
    parser.add_argument("--run", type=Path, help="a finished run of prune=channel instead of --model and --macs")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--onnx", action="store_true", help="onnxruntime too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args(argv)
    if arguments.run:
        run = ExportedRun(arguments.run)
        example, masked, title = run.task.example_input(), run.model, f"{run.config.model.name}, {arguments.run}"
    else:
        example = torch.zeros(1, 3, arguments.size, arguments.size)
        masked, title = pruned_model(arguments.model, arguments.macs, example), arguments.model
    models = {"dense": masked, "slim": slim(masked, example).model.eval()}
    if arguments.round_to is not None:
        if arguments.run or arguments.round_to < 1:
            raise Refusal(
                f"--round-to {arguments.round_to}: give a number from 1 up, and --model and --macs, not --run"
            )
        rounded = pruned_model(arguments.model, arguments.macs, example, arguments.round_to)
        models[f"slim in multiples of {arguments.round_to}"] = slim(rounded, example).model.eval()
    inputs = torch.randn(arguments.batch, *example.shape[1:], device=arguments.device)
    costs = {name: int(count_macs(model, example).macs.sum()) for name, model in models.items()}
    parameters = {name: count_parameters(model)[0] for name, model in models.items()}
    runners = {name: torch_runner(model.to(arguments.device), inputs) for name, model in models.items()}
    if any(isinstance(module, nn.Conv2d) for module in masked.modules()):
        runners |= {
            f"{name}, torch, channels_last": torch_runner(
                deepcopy(model).to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
            )
            for name, model in models.items()
        }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.onnx:
            threads = torch.get_num_threads()
            runners |= {
                f"{name}, onnxruntime": onnx_runner(model.cpu(), inputs.cpu(), Path(folder), threads)
                for name, model in models.items()
            }
        seconds = measure(runners, arguments.rounds)
    rows = []
    for name, times in seconds.items():
        kind, _, engine = name.partition(", ")
        baseline = seconds[name.replace(kind, "dense")]
        rows.append(
            {
                "model": kind,
                "engine": engine or "torch",
                "parameters": parameters[kind],
                "macs": costs[kind],
                "macs_ratio": costs["dense"] / costs[kind],
                "latency_ms": 1000 * median(times),
                "images_per_second": arguments.batch / median(times),
                "speedup": median(first / second for first, second in zip(baseline, times, strict=True)),
            }
        )
    table = Table(
        "model", "engine", "parameters", "MACs", "MACs ratio", "latency ms", "images/s", "speed-up", title=title
    )
    for row in rows:
        table.add_row(
            str(row["model"]),
            str(row["engine"]),
            f"{row['parameters']:,}",
            f"{row['macs']:,}",
            f"{row['macs_ratio']:.2f}x",
            f"{row['latency_ms']:.1f}",
            f"{row['images_per_second']:.1f}",
            f"{row['speedup']:.2f}x",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.out:
        where = {"batch": arguments.batch, "input": list(example.shape[1:])}
        where = machine(torch.device(arguments.device)) | where
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"title": title, "machine": where, "results": rows}, indent=1) + "\n")
        print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_inference", main))
