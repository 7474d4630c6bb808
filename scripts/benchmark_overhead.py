"""What PDP adds to a training step: dense and PDP steps in turn in one process, and where the extra time goes.

    python scripts/benchmark_overhead.py                                  # resnet50 and mobilenet_v1 at 224, batch 16
    python scripts/benchmark_overhead.py --model resnet18 --batch 8 --pairs 15 --out results/benchmarks/mine.json

The ratio is the median over pairs of steps, one dense and one PDP step each, so that a machine's drift cancels.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp import Pruner, soft_prune
from pdp.config.schema import ModelConfig
from pdp.tasks.image_models import NAMES, build_model

SPARSITY, TEMPERATURE = 0.866, 1e-4


class Contender:
    """A model with its optimizer, pruned at the full share or dense."""

    def __init__(self, name: str, method: str, device: torch.device, channels_last: bool):
        torch.manual_seed(0)
        config = ModelConfig(name=name, task="images", library="pdp" if name in NAMES else "timm")
        self.model: nn.Module = build_model(config, 1000)[0].to(device)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        now = {"warmup": "0ep", "ramp": "1ep"}
        self.pruner = Pruner(
            self.model, method, sparsity=None if method == "dense" else SPARSITY, epochs=1, schedule=now
        )
        self.pruner.start_epoch(0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step(self, images: torch.Tensor, labels: torch.Tensor, precision: torch.dtype) -> None:
        """One training step."""
        with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.pruner.step()
        self.optimizer.zero_grad()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parts(contender: Contender, device: torch.device, repeats: int = 7) -> dict[str, float]:
    """Median seconds of PDP's own work in one step: the cut, the mask forward, the mask backward."""
    pruner = contender.pruner
    weights = [layer.weight.detach().clone().requires_grad_() for layer in pruner.layers]
    gradients = [torch.randn_like(weight) for weight in weights]
    cuts, forwards, backwards = [], [], []
    for _ in range(repeats):
        cuts.append(seconds(lambda: pruner.method.update(pruner.layers, 1), device))
        effective: list[torch.Tensor] = []

        def forward(into: list[torch.Tensor] = effective) -> None:
            for layer, weight in zip(pruner.layers, weights, strict=True):
                into.append(soft_prune(weight, layer.state["cut"], TEMPERATURE))

        forwards.append(seconds(forward, device))
        backwards.append(seconds(lambda outputs=effective: torch.autograd.grad(outputs, weights, gradients), device))  # type: ignore[misc]
    return {"cut": median(cuts), "mask": median(forwards), "backward": median(backwards)}


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Both steps in turn."""
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision]
    dense, pruned = (Contender(name, method, device, arguments.channels_last) for method in ("dense", "pdp"))
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    if arguments.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (arguments.batch,), device=device)
    for contender in (dense, pruned):
        contender.step(images, labels, precision)
    pairs = []
    for _ in track(range(arguments.pairs), f"{name}, pairs of steps"):
        pairs.append([seconds(lambda one=one: one.step(images, labels, precision), device) for one in (dense, pruned)])  # type: ignore[misc]
    ratios = sorted(second / first for first, second in pairs)
    return {
        "model": name,
        "batch": arguments.batch,
        "size": arguments.size,
        "precision": arguments.precision,
        "channels_last": arguments.channels_last,
        "dense_ms": 1000 * median(first for first, _ in pairs),
        "pdp_ms": 1000 * median(second for _, second in pairs),
        "ratio": median(ratios),
        "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "parts_ms": {key: 1000 * value for key, value in parts(pruned, device).items()},
        "weights": sum(layer.units for layer in pruned.pruner.layers),
    }


def main() -> None:
    """Measures, prints a table, and writes JSON where --out names a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        default=["resnet50", "mobilenet_v1"],
        help="this project's models or any timm model, by name",
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    results = [measure(name, arguments, device) for name in arguments.model]
    table = Table("model", "dense ms", "PDP ms", "ratio", "cut ms", "mask ms", "backward ms")
    for one in results:
        own = one["parts_ms"]
        figures = [one["dense_ms"], one["pdp_ms"], one["ratio"], *own.values()]  # type: ignore[attr-defined]
        table.add_row(
            str(one["model"]),
            *(f"{value:.3f}" if index == 2 else f"{value:.1f}" for index, value in enumerate(figures)),
        )
    Console().print(table)
    if arguments.out:
        machine = {
            "device": torch.cuda.get_device_name()
            if device.type == "cuda"
            else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "command": " ".join(sys.argv),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
