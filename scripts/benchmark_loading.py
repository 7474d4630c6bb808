"""Measures images read, decoded and augmented per second and core: this project's folder loader beside torchvision's.

    python scripts/benchmark_loading.py                                       # generated JPEGs of ImageNet's size
    python scripts/benchmark_loading.py --root /data/imagenet --images 2000   # real ones: train/<class>/<image>
    python scripts/benchmark_loading.py --rate 2500                           # cores that a GPU of that rate needs

torchvision's loader is ImageFolder with RandomResizedCrop(224), RandomHorizontalFlip, ToTensor and Normalize, without
workers. Each loader runs single-threaded in a separate process, alternately over the same images; both return
normalised float32. The figure is images per second of processor time, which varies less than wall time on a busy
machine; both are written. In training our workers return uint8 and the device normalises; the row `bytes` measures
that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded

TARGET = 1.0  # as a multiple of torchvision's rate


def ours(root: str, images: int, size: int, batch: int, normalise: bool) -> Callable[[int], dict[str, Any]]:
    """A pass over the training images by the loader that a run of data=image_folder uses."""
    from pdp.config.compose import compose
    from pdp.tasks import build_task
    from pdp.tasks.image_data import normalised
    from pdp.tasks.sampling import set_epoch

    words = ["model=resnet18", "data=image_folder", f"data.root={root}", f"data.image_size={size}", "prune=none"]
    config = compose([*words, f"data.limit={images}", "data.validation=0", "data.workers=0"])
    task = build_task(config)
    task.open_data()
    loader = task.train_loader(batch, config.seed, "random_resized_crop", 0)
    epoch = 0

    def one_pass() -> int:
        nonlocal epoch
        set_epoch(loader, epoch)
        epoch += 1
        count = 0
        for batch in loader:
            pixels = normalised(batch["image"]) if normalise else batch["image"]
            count += len(pixels)
        return count

    return timed(one_pass)


def torchvisions(root: str, images: int, size: int, batch: int) -> Callable[[int], dict[str, Any]]:
    """A pass over as many images by torchvision's own components."""
    import torch
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    folder = datasets.ImageFolder(str(Path(root) / "train"), transforms.Compose(steps))
    # Spread over the classes like the images of the other loader.
    chosen = torch.linspace(0, len(folder) - 1, min(images, len(folder))).long().tolist()
    loader: Any = DataLoader(Subset(folder, chosen), batch, shuffle=True, drop_last=len(chosen) >= batch)
    return timed(lambda: sum(len(pixels) for pixels, _ in loader))


def timed(one_pass: Callable[[], int]) -> Callable[[int], dict[str, Any]]:
    """A function that makes passes and returns their images, processor time and wall time, with one thread."""
    import torch

    torch.set_num_threads(1)

    def measure(passes: int) -> dict[str, Any]:
        started, used = time.perf_counter(), time.process_time()
        images = sum(one_pass() for _ in range(passes))
        wall, used = time.perf_counter() - started, time.process_time() - used
        return {"images": images, "wall": wall, "seconds": used / images}

    return measure


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("benchmark_loading.py", __doc__)
    parser.add_argument("--root", type=Path, help="a folder of train/<class>/<image> and val/; else one is made")
    parser.add_argument("--images", type=int, default=512, help="images of a pass (512)")
    parser.add_argument("--sides", type=int, nargs=2, default=(500, 375), help="of generated images, pixels (500 375)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side that training sees (224)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="passes of each loader, in turn (7)")
    parser.add_argument("--rate", type=float, help="images per second that a GPU takes: says how many cores feed it")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints a table, and writes JSON if --out names a file."""
    for key in ("images", "batch", "rounds"):
        if getattr(arguments, key) < 1:
            raise Refusal(f"--{key}={getattr(arguments, key)}: give at least 1")
    if arguments.root is not None and not (arguments.root / "train").is_dir():
        raise Refusal(f"--root={arguments.root} has no train/: give a folder with train/<class>/<image> and val/")
    import torch
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from pdp.benchmarks.benchmarking import Apart, machine, verdict, write_figures
    from pdp.benchmarks.made_images import make_image_folder
    from pdp.benchmarks.step_timing import in_turn, quartiles

    with tempfile.TemporaryDirectory() as made:
        root = arguments.root or make_image_folder(Path(made), arguments.images, sides=tuple(arguments.sides))
        common = (str(root), arguments.images, arguments.size, arguments.batch)
        theirs = Apart(torchvisions, *common)
        rows = []
        try:
            with Progress() as bar:
                task = bar.add_task("passes", total=4 * (arguments.rounds + 1))
                for name, normalise in (("pdp", True), ("pdp, bytes", False)):
                    mine = Apart(ours, *common, normalise)
                    try:
                        pairs = in_turn(theirs, mine, arguments.rounds, 1, 1, lambda: bar.advance(task))
                    finally:
                        mine.close()
                    rates = [first / second for first, second in pairs.rows]  # inverted, because the pairs are seconds
                    row = {
                        "loader": name,
                        "images": [one["images"] for one in mine.seen[1:]],
                        "torchvision_images": [one["images"] for one in theirs.seen[-arguments.rounds :]],
                        "per_core": 1 / median(second for _, second in pairs.rows),
                        "torchvision_per_core": 1 / median(first for first, _ in pairs.rows),
                        "per_second": median(one["images"] / one["wall"] for one in mine.seen[1:]),
                        "ratio": median(rates),
                        "ratio_quartiles": quartiles(rates),
                        "repeat_quartiles": quartiles(pairs.repeats) if pairs.repeats else None,
                        "target": TARGET if normalise else None,
                        "held": median(rates) >= TARGET if normalise else None,
                    }
                    if arguments.rate:
                        row["cores_for_rate"] = arguments.rate / float(row["per_core"])
                    rows.append(row)
        finally:
            theirs.close()
        data = str(arguments.root or "generated JPEGs of {}x{}".format(*arguments.sides))
    table = Table("loader", "images/s and core", "torchvision's", "ratio", "quartiles", "target", "cores needed")
    for row in rows:
        low, high = row["ratio_quartiles"]
        table.add_row(
            row["loader"],
            f"{row['per_core']:.0f}",
            f"{row['torchvision_per_core']:.0f}",
            f"{row['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            verdict(row["target"], row["held"]),
            f"{row['cores_for_rate']:.1f}" if "cores_for_rate" in row else "",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.out:
        where = machine(torch.device("cpu"), threads=1) | {"data": data, "size": arguments.size}
        write_figures(arguments.out, where | {"batch": arguments.batch, "rate": arguments.rate}, rows)
        print(f"written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded("benchmark_loading.py", lambda: run(make_parser().parse_args())))
