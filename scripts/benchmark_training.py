"""Measures images trained per second: a dense run of train.py beside a short loop made of timm's parts.

    python scripts/benchmark_training.py                                        # ResNet-18, generated JPEGs, CPU
    python scripts/benchmark_training.py --preset h200 --root /data/imagenet --images 100000 --workers 16
    python scripts/benchmark_training.py --preset h200 --decode gpu             # train.py's images decoded on the GPU
    python scripts/benchmark_training.py --model mobilenet_v1 --batch 256 --precision bf16 --channels-last

Both train the same model with the same batch size, image size, precision, augmentation and number of loader workers,
alternately and each in a separate process. A round is a run of --epochs epochs, of which all but the first are counted:
from the beginning of an epoch to the end of its last step on the device, without validation and checkpoints. `resident`
is the rate of the same steps on one batch that stays in the device's memory: the upper limit for any loader.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
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

TARGET = 0.98  # as a multiple of the loop's rate
RESIDENT = 0.95  # as a multiple of the rate of the same steps on one batch in the device's memory
WARMUP, STEPS = 3, 10  # steps on the one batch
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {"model": "resnet18", "batch": 16, "images": 96, "device": "cpu", "threads": 2, "workers": 1},
    "h200": {"model": "resnet50", "batch": 256, "images": 25600, "device": "cuda", "precision": "bf16"}
    | {"channels_last": True, "workers": 16, "rounds": 3, "epochs": 3},
}


def words(values: dict[str, Any], root: str) -> list[str]:
    """The arguments of train.py."""
    known = (Path(__file__).resolve().parent.parent / "conf" / "model" / f"{values['model']}.yaml").is_file()
    model = [f"model={values['model']}"] if known else ["model=timm", f"model.name={values['model']}"]
    data = ["data=image_folder", f"data.root={root}", f"data.image_size={values['size']}", "data.validation=0"]
    recipe = [f"recipe.epochs={values['epochs']}", f"recipe.batch_size={values['batch']}", "recipe.lr=0.01"]
    recipe += ["recipe.lr_warmup=0", "recipe.lr_unit=step", f"recipe.precision={values['precision']}"]
    recipe += [f"recipe.channels_last={values['channels_last']}", f"recipe.compile={values['compile']}"]
    if values["decode"] == "gpu":
        data.append("data.decode=gpu")
    rest = [f"data.workers={values['workers']}", f"data.limit={values['images']}", f"device={values['device']}"]
    return [*model, *data, *recipe, *rest, "prune=none", "seed=0"]


def ours(values: dict[str, Any], root: str, output: str) -> Callable[[int], dict[str, Any]]:
    """Runs made by train.py; the seconds are those in the run's history."""
    import json

    import torch

    from pdp.config.compose import compose
    from pdp.training.run import train

    torch.set_num_threads(values["threads"])
    config = compose([*words(values, root), f"output_dir={output}", "rerun=true"])

    def measure(runs: int) -> dict[str, Any]:
        seconds, steps = 0.0, 0
        for _ in range(runs):
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                train(config)
            newest = max(Path(output).rglob("history.jsonl"), key=lambda path: path.stat().st_mtime)
            first, *_, last = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
            seconds, steps = seconds + last["seconds"] - first["seconds"], steps + last["step"] - first["step"]
        return {"seconds": seconds, "images": steps * values["batch"], "steps": steps}

    return measure


def resident(values: dict[str, Any], root: str) -> Callable[[int], dict[str, Any]]:
    """The same steps on a single batch, without reading, decoding or copying."""
    import torch

    from pdp.benchmarks.contender import Contender

    torch.set_num_threads(values["threads"])
    contender = Contender(words(values, root))

    def measure(steps: int) -> dict[str, Any]:
        return {"seconds": contender.seconds(steps), "images": steps * values["batch"], "steps": steps}

    return measure


def timms(values: dict[str, Any], root: str) -> Callable[[int], dict[str, Any]]:
    """The training loop that somebody would write with timm."""
    import torch
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    from pdp.config.compose import compose
    from pdp.tasks.image_models import build_model

    torch.set_num_threads(values["threads"])
    device = torch.device(values["device"])
    cuda, layout = device.type == "cuda", torch.channels_last if values["channels_last"] else torch.contiguous_format
    classes = sum(1 for one in (Path(root) / "train").iterdir() if one.is_dir())

    def measure(runs: int) -> dict[str, Any]:
        seconds, steps = 0.0, 0
        for _ in range(runs):
            torch.manual_seed(0)
            model: Any = build_model(compose(words(values, root)).model, classes)[0]
            model = model.to(device, memory_format=layout).train()
            stepped = torch.compile(model) if values["compile"] else model
            dataset: Any = create_dataset("", root=root, split="train", is_training=True)
            chosen = torch.linspace(0, len(dataset) - 1, min(values["images"], len(dataset))).long().tolist()
            dataset.reader.samples = [dataset.reader.samples[number] for number in chosen]
            loader = create_loader(
                dataset, (3, values["size"], values["size"]), values["batch"], is_training=True, color_jitter=0.0,
                interpolation="bilinear", num_workers=values["workers"], use_prefetcher=cuda, pin_memory=cuda,
                persistent_workers=values["workers"] > 0, device=device,
            )  # fmt: skip
            optimizer = create_optimizer_v2(model, "sgd", lr=0.01, weight_decay=3e-5, momentum=0.875)
            scheduler, epochs = create_scheduler_v2(
                optimizer, "cosine", num_epochs=values["epochs"], step_on_epochs=False, updates_per_epoch=len(loader)
            )
            lossy, update = torch.nn.CrossEntropyLoss(label_smoothing=0.1), 0
            for epoch in range(epochs):
                started = time.perf_counter()
                for images, labels in loader:
                    images = images.contiguous(memory_format=layout)
                    with torch.autocast(device.type, torch.bfloat16, enabled=values["precision"] == "bf16"):
                        loss = lossy(stepped(images), labels)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    update += 1
                    scheduler.step_update(update)
                if cuda:
                    torch.cuda.synchronize()
                if epoch:
                    seconds, steps = seconds + time.perf_counter() - started, steps + len(loader)
        return {"seconds": seconds, "images": steps * values["batch"], "steps": steps}

    return measure


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("benchmark_training.py", __doc__)
    parser.add_argument("--preset", choices=[*PRESETS], help="the settings of the target; other options win over it")
    parser.add_argument("--model", default="resnet18", help="this project's models or any timm model, by name")
    parser.add_argument("--root", type=Path, help="a folder with train/<class>/<image> and val/; else one is made")
    parser.add_argument("--images", type=int, default=256, help="images of an epoch (256)")
    parser.add_argument("--sides", type=int, nargs=2, default=(500, 375), help="of generated images, pixels (500 375)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side that training sees (224)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3, help="of a run; the first is not counted (3)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turn (5)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each (1)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of torch, on the CPU")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--decode",
        choices=["cpu", "gpu"],
        default="cpu",
        help="what decodes train.py's images, not timm's",
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    return parser


def parsed(line: list[str] | None = None) -> argparse.Namespace:
    """The parsed command line, with its preset's values as defaults."""
    parser = make_parser()
    preset = parser.parse_args(line).preset
    if preset:
        parser.set_defaults(**PRESETS[preset])
    return parser.parse_args(line)


def check(arguments: argparse.Namespace) -> None:
    """Raises `Refusal` for arguments that do not fit together."""
    import torch

    if arguments.epochs < 2:
        raise Refusal(f"--epochs={arguments.epochs}: give at least 2, as the first is not counted")
    if not 0 < arguments.batch <= arguments.images:
        raise Refusal(f"--batch={arguments.batch} must lie between 1 and --images={arguments.images}")
    if arguments.rounds < 1:
        raise Refusal(f"--rounds={arguments.rounds}: give at least 1")
    if arguments.root is not None and not (arguments.root / "train").is_dir():
        raise Refusal(f"--root={arguments.root} has no train/: give a folder with train/<class>/<image> and val/")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise Refusal("--device=cuda: no CUDA device is at hand; give --device cpu")
    if arguments.decode == "gpu" and arguments.device != "cuda":
        raise Refusal("--decode=gpu needs a CUDA device: give --device cuda, or --decode cpu")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints both rates, and writes JSON if --out names a file."""
    check(arguments)
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from pdp.benchmarks.benchmarking import Apart, verdict
    from pdp.benchmarks.made_images import make_image_folder
    from pdp.benchmarks.step_timing import in_turn

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "images")
        root = str(arguments.root or make_image_folder(made, arguments.images, sides=tuple(arguments.sides)))
        values = {key: value for key, value in vars(arguments).items() if key not in ("root", "out", "preset")}
        still = Apart(resident, values, root)
        try:
            still.seconds(WARMUP)
            held = [values["batch"] * STEPS / still.seconds(STEPS) for _ in range(arguments.rounds)]
        finally:
            still.close()
        print(f"resident: {median(held):.0f} images a second", file=sys.stderr)
        theirs, mine = Apart(timms, values, root), Apart(ours, values, root, str(Path(folder, "runs")))
        seen = {"timm": theirs.seen, "pdp": mine.seen}
        try:
            with Progress() as bar:
                task = bar.add_task("runs", total=2 * (arguments.rounds + 1))
                told, began = dict.fromkeys(seen, 0), time.perf_counter()

                def tell() -> None:
                    bar.advance(task)
                    for name, runs in seen.items():
                        for one in runs[told[name] :]:
                            rate = one["images"] / one["seconds"]
                            now = time.perf_counter() - began
                            print(f"{name}: {rate:.0f} images a second; {now:.0f} s so far", file=sys.stderr)
                        told[name] = len(runs)
                    if min(map(len, seen.values())) > 1:  # a command that is stopped leaves its rounds
                        keep(arguments, rated(values, seen, held))

                in_turn(theirs, mine, arguments.rounds, 1, 1, tell)
        finally:
            theirs.close()
            mine.close()
    row = rated(values, seen, held)
    table = Table(
        "model", "timm images/s", "pdp images/s", "ratio", "quartiles", "target", "resident", "of it", "target"
    )
    low, high = row["ratio_quartiles"]
    figures = (f"{row['timm_per_second']:.1f}", f"{row['pdp_per_second']:.1f}", f"{row['ratio']:.3f}")
    rate, share = f"{row['resident_per_second']:.1f}", f"{row['of_resident']:.3f}"
    of_it = (rate, share, verdict(RESIDENT, row["resident_held"]))
    table.add_row(arguments.model, *figures, f"{low:.3f} to {high:.3f}", verdict(TARGET, row["held"]), *of_it)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    keep(arguments, row)
    if arguments.out:
        print(f"written to {arguments.out}")
    return 0


def rated(values: dict[str, Any], seen: dict[str, list[dict[str, Any]]], held: list[float]) -> dict[str, Any]:
    """The figures of the rounds so far, of which the first is a warm-up; `held` are the rates of the one batch."""
    from pdp.benchmarks.step_timing import quartiles

    rates = {name: [one["images"] / one["seconds"] for one in runs[1:]] for name, runs in seen.items()}
    ratios = [second / first for first, second in zip(rates["timm"], rates["pdp"], strict=False)]
    repeats = [later / sooner for runs in rates.values() for sooner, later in itertools.pairwise(runs)]
    return values | {
        "timm_per_second": median(rates["timm"]),
        "pdp_per_second": median(rates["pdp"]),
        "timm_steps": seen["timm"][-1]["steps"],
        "pdp_steps": seen["pdp"][-1]["steps"],
        "rounds": len(ratios),
        "ratio": median(ratios),
        "ratio_quartiles": quartiles(ratios),
        "repeat_quartiles": quartiles(repeats) if repeats else None,
        "target": TARGET,
        "held": median(ratios) >= TARGET,
        "resident_per_second": median(held),
        "of_resident": median(rates["pdp"]) / median(held),
        "resident_target": RESIDENT,
        "resident_held": median(rates["pdp"]) >= RESIDENT * median(held),
    }


def keep(arguments: argparse.Namespace, row: dict[str, Any]) -> None:
    """Writes the figures where --out names a file."""
    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures

    if arguments.out:
        data = str(arguments.root or "generated JPEGs of {}x{}".format(*arguments.sides))
        where = machine(torch.device(arguments.device), arguments.threads) | {"data": data}
        write_figures(arguments.out, where, [row])


if __name__ == "__main__":
    sys.exit(guarded("benchmark_training.py", lambda: run(parsed())))
