"""Measures what background checkpoints cost a training of ResNet-50: the copy that a step waits for, and the writing.

    python scripts/benchmark_checkpoints.py                       SGD with momentum, batch 8 at 224
    python scripts/benchmark_checkpoints.py --batch 256 --steps 40 --precision bf16     on a GPU

Times alternately steps without a checkpoint and steps during which one is written, and prints the cost of a checkpoint
every `--minutes` as a fraction of the training time. Writes results/benchmarks/checkpoints_<cpu or gpu>.json. Exit
codes: 0.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes the figures."""
    parser = Parser("benchmark_checkpoints.py", __doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="without a checkpoint, in each turn (4)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0, help="between two checkpoints (10, the default)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--to", type=Path, help="the file of figures")
    arguments = parser.parse_args(argv)

    import torch
    from torchvision.models import resnet50

    from pdp.benchmarks.benchmarking import machine, write_figures
    from pdp.training.writer import CheckpointWriter

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = resnet50().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(arguments.batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (arguments.batch,), device=device)

    def step() -> float:
        begun = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return time.perf_counter() - begun

    for _ in range(2):
        step()
    plain, during, copies, writes, sizes = [], [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder))
        for turn in range(arguments.turns):
            plain += [step() for _ in range(arguments.steps)]
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            begun = time.perf_counter()
            writer.save(state, turn)
            copies.append(writer.copy_seconds)
            slowed = []
            while writer.busy:
                slowed.append(step())
            writes.append(time.perf_counter() - begun)
            writer.wait()
            during.append(slowed)
            sizes.append(max(path.stat().st_size for path in Path(folder).glob("*.pt")))
    usual = median(plain)
    lost = [copy + sum(max(0.0, one - usual) for one in slowed) for copy, slowed in zip(copies, during, strict=True)]
    row = {
        "model": "resnet50",
        "batch": arguments.batch,
        "precision": arguments.precision,
        "checkpoint_mb": round(max(sizes) / 1e6, 1),
        "step_ms": round(1000 * usual, 2),
        "copy_ms": [round(1000 * one, 2) for one in copies],
        "written_after_s": [round(one, 2) for one in writes],
        "step_ms_during": [round(1000 * median(one), 2) for one in during if one],
        "lost_ms": [round(1000 * one, 1) for one in lost],
        "share_of_time": round(median(lost) / (60 * arguments.minutes), 6),
        "minutes": arguments.minutes,
    }
    kind = "gpu" if device.type == "cuda" else "cpu"
    write_figures(arguments.to or ROOT / "results" / "benchmarks" / f"checkpoints_{kind}.json", machine(device), [row])
    for key, value in row.items():
        print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_checkpoints", main))
