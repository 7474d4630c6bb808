"""Measures how long a start takes to open a folder of ImageNet's size, the first time and later, and its memory.

    python scripts/benchmark_startup.py --root /data/imagenet            any folder of train/<class>/ and val/<class>/
    python scripts/benchmark_startup.py --make /tmp/large                makes one of 1,281,000 + 50,000 tiny images

Each start is a separate process: first with an empty cache, then two at once as two ranks would do, then with the
listing cached. Writes results/benchmarks/startup_imagenet.json. Exit codes: 0; 2 refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]
_START = """
import json, os, sys, time
from pdp.config.compose import compose
from pdp.tasks import build_task

def memory(kind):
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024

task = build_task(compose(["model=resnet50", "data=image_folder", "sparsity=0.9", f"data.root={sys.argv[1]}"]))
before, begun = [memory(kind) for kind in ("Private_", "Shared_")], time.perf_counter()
task.open_data()
seconds = time.perf_counter() - begun
loader = task.train_loader(256, 0, "random_resized_crop", 0)
import resource
print(json.dumps({
    "seconds": round(seconds, 2),
    "private_mb": round(memory("Private_") - before[0], 1),
    "shared_mb": round(memory("Shared_") - before[1], 1),
    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    "images": sum(task.sizes().values()),
    "fingerprint": task.data_fingerprint,
}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and writes the figures."""
    parser = Parser("benchmark_startup.py", __doc__)
    parser.add_argument("--root", type=Path, help="the folder to open")
    parser.add_argument("--make", type=Path, help="make a folder of 1,000 classes there first")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "benchmarks" / "startup_imagenet.json")
    arguments = parser.parse_args(argv)
    root = arguments.root or arguments.make
    if root is None:
        raise Refusal("give --root <a folder of images> or --make <a new folder>")
    if arguments.make:
        make(arguments.make)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        plans = (("no listing kept", 1), ("listing kept", 1), ("listing kept, two at once", 2))
        for name, count in plans:
            rows += [{"start": name} | row for row in starts(root, cache, count)]
    with tempfile.TemporaryDirectory() as cache:
        rows += [{"start": "no listing kept, two at once"} | row for row in starts(root, cache, 2)]
    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures

    write_figures(arguments.to, machine(torch.device("cpu")), rows)
    for row in rows:
        print(row)
    return 0


def starts(root: Path, cache: str, count: int) -> list[dict]:
    """Runs `count` processes at once; returns what each measured."""
    environment = os.environ | {"PDP_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _START, str(root)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return [json.loads(process.communicate()[0]) for process in running]


def make(root: Path) -> None:
    """Makes 1,000 classes of 1,281 images in train/ and 50 in val/, as hard links to one tiny file per class."""
    from PIL import Image

    for part, count in (("train", 1281), ("val", 50)):
        for number in range(1000):
            folder = root / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            first = folder / f"n{number:08d}_0.JPEG"
            Image.new("RGB", (8, 8)).save(first)
            for image in range(1, count):
                os.link(first, folder / f"n{number:08d}_{image}.JPEG")


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_startup", main))
