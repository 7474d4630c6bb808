"""Measures the seconds from a command to the end of its first training step, beside a short loop of timm's own parts.

    python scripts/benchmark_first_step.py                       # README's first command
    python scripts/benchmark_first_step.py --rounds 9 --out results/benchmarks/first_step.json
    python scripts/benchmark_first_step.py model=resnet20 prune=nm          # other words of train.py
    python scripts/benchmark_first_step.py --before ../older                # and the train.py of another checkout

Every start is a process of its own, in turn: train.py with these words; a script that makes timm's MobileNet-v1, the
digits as a data set, timm's optimizer and a step; and `import torch`, of which neither can save anything. One start of
each is made before, so that files and compiled kernels are in the caches, as from the second start on. Run it on a
quiet machine; the processor's seconds, which stand beside, depend less on what else runs. Exit codes: 0; 2 refused; 3 a
start failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.errors import Refusal, Stopped
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]
_FIRST = ["model=mobilenet_v1", "prune=random", "sparsity=0.866"]
# Prints the seconds once the first optimizer step has ended. The watched program itself imports torch, when it does.
_WATCH = """
import importlib.util, os, runpy, sys, time
def ended(*_):
    wall = time.time() - float(os.environ["BEGUN"])
    print("seconds", wall, time.process_time(), file=sys.stderr, flush=True)
    os._exit(0)
class Watch:
    def find_spec(self, name, *_):
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def watched(module):
            execute(module)
            module.register_optimizer_step_post_hook(ended)
        spec.loader.exec_module = watched
        return spec
sys.meta_path.insert(0, Watch())
"""
_OURS = _WATCH + 'sys.argv[0] = "train.py"\nrunpy.run_path("train.py", run_name="__main__")\n'
_TIMM = (
    _WATCH
    + """
import timm, torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
digits = load_digits()
images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
images = torch.nn.functional.interpolate(images, size=32).expand(-1, 3, -1, -1)
data = torch.utils.data.TensorDataset(images, torch.from_numpy(digits.target).long())
loader = torch.utils.data.DataLoader(data, 64, shuffle=True)
model = timm.create_model("mobilenetv1_100", num_classes=10)
optimizer = create_optimizer_v2(model, "sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
scheduler = CosineLRScheduler(optimizer, 12)
for inputs, labels in loader:
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
"""
)
_TORCH = _WATCH + "import torch\nended()\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Starts everything in turn and prints one table."""
    parser = Parser("benchmark_first_step.py", __doc__)
    parser.add_argument("words", nargs="*", help="of train.py (README's first command)")
    parser.add_argument("--rounds", type=int, default=7, help="starts of each that count (7)")
    parser.add_argument("--before", type=Path, help="another checkout of this project, whose train.py starts in turn")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    values = parser.parse_args(argv)
    if values.rounds < 1:
        raise Refusal(f"--rounds {values.rounds}: give at least 1")
    if values.before and not (values.before / "train.py").is_file():
        raise Refusal(f"--before {values.before}: give a checkout of this project, with its train.py")
    words = values.words or _FIRST

    import torch

    from pdp.benchmarks.benchmarking import machine
    from pdp.environment import git_commit

    taken: dict[str, list[tuple[float, float]]] = {"train.py": [], "timm's parts": [], "import torch": []}
    with tempfile.TemporaryDirectory() as place:
        codes = {
            "train.py": [_OURS, *words, f"output_dir={place}", "rerun=true"],
            "timm's parts": [_TIMM],
            "import torch": [_TORCH],
        }
        if values.before:
            codes["train.py before"], taken["train.py before"] = codes["train.py"], []
        for number in range(values.rounds + 1):
            for name, code in codes.items():
                one = started(code, values.before.resolve() if name == "train.py before" else ROOT)
                if number:
                    taken[name].append(one)
    seconds, busy = ({name: [one[kind] for one in ones] for name, ones in taken.items()} for kind in (0, 1))
    medians, busy_medians = ({name: median(ones) for name, ones in kind.items()} for kind in (seconds, busy))
    for name, ones in seconds.items():
        spread = f"({min(ones):.2f} to {max(ones):.2f})"
        print(f"{name}: {medians[name]:.2f} s {spread}, of the processor {busy_medians[name]:.2f}")
    ratio = medians["train.py"] / medians["timm's parts"]
    for name in [one for one in medians if one not in ("train.py", "import torch")]:
        parts = [one["train.py"] / one[name] for one in (medians, busy_medians)]
        print(f"train.py over {name}: {parts[0]:.2f}, of the processor {parts[1]:.2f}")
    if values.out:
        told = {"machine": machine(torch.device("cpu")), "words": words, "ratio": ratio}
        told |= {"medians": medians, "seconds": seconds, "processor_medians": busy_medians, "processor_seconds": busy}
        if values.before:
            told["before"] = git_commit(values.before.resolve())
        values.out.parent.mkdir(parents=True, exist_ok=True)
        values.out.write_text(json.dumps(told, indent=1) + "\n")
        print(f"written to {values.out}")
    return 0


def started(code: list[str], root: Path) -> tuple[float, float]:
    """Seconds from the start of a process in the checkout `root` to the end of its first step; and its processor's."""
    environment = os.environ | {"BEGUN": repr(time.time()), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", *code], cwd=root, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("seconds ")]
    if not lines:
        raise Stopped(f"a start made no step (exit {done.returncode}): {done.stderr.strip()[-300:]}")
    wall, busy = lines[-1].split()[1:]
    return float(wall), float(busy)


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_first_step", main))
