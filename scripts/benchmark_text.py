"""What it takes to open a text that is larger than memory: seconds and the largest resident size of a fresh process.

    python scripts/benchmark_text.py --megabytes 540 --workers 2          # as large as WikiText-103
    python scripts/benchmark_text.py --megabytes 50 --one-line

Makes a text of words by Zipf's law, opens it as `data=text` in a process of its own, twice (the tokens are there the
second time), and draws an epoch's first thousand windows. Writes a row to results/benchmarks/large_text.json.
Exit codes: 0.
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

from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]
_WORDS = 270_000  # different ones, as in WikiText-103
_OPEN = """
import json, resource, sys, time
from pdp.config.compose import compose
from pdp.tasks import build_task
bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
task = build_task(compose(sys.argv[1:]))
task.open_data()
opened = time.perf_counter() - begun
for number, batch in enumerate(task.train_loader(8, 0, "none", 0)):
    if number == 125:
        break
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"seconds": round(opened, 1), "imports_mb": bare // 1024, "peak_mb": own // 1024,
                  "peak_of_a_helper_mb": helper // 1024, "tokens": len(task._parts["train"].ids),
                  "fingerprint": task.data_fingerprint}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes, opens and writes."""
    parser = Parser("benchmark_text.py", __doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one-line", action="store_true", help="no line end in all of the training text")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--folder", type=Path, help="for the text and its tokens (a temporary one)")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "benchmarks" / "large_text.json")
    arguments = parser.parse_args(argv)

    import torch

    from pdp.benchmarks.benchmarking import machine

    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        make_text(folder / "train.txt", arguments.megabytes, arguments.one_line, 1)
        make_text(folder / "test.txt", 1, False, 2)
        overrides = ["model=gpt2_tiny", "prune=none", "data=text", f"data.root={folder}", "data.context=512",
                     f"data.vocabulary={arguments.vocabulary}", f"data.workers={arguments.workers}",
                     "model.sizes={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 512}"]  # fmt: skip
        environment = os.environ | {"PDP_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        runs = []
        for _ in range(2):
            command = [sys.executable, "-c", _OPEN, *overrides]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout))
    first, second = runs
    row = {
        "megabytes": arguments.megabytes,
        "one_line": arguments.one_line,
        "workers": arguments.workers,
        "vocabulary": arguments.vocabulary,
        **first,
        "seconds_again": second["seconds"],
        "peak_again_mb": second["peak_mb"],
        "same_fingerprint": first["fingerprint"] == second["fingerprint"],
        "load_average": round(os.getloadavg()[0], 1),
        "machine": machine(torch.device("cpu")),
    }
    rows = json.loads(arguments.to.read_text()) if arguments.to.is_file() else []
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    arguments.to.write_text(json.dumps([*rows, row], indent=1) + "\n")
    for key, value in row.items():
        print(f"{key}: {value}")
    return 0


def make_text(path: Path, megabytes: int, one_line: bool, seed: int) -> None:
    """Words by Zipf's law, a line of about twenty each, or one line in all."""
    import numpy as np

    letters = np.random.default_rng(0)
    draw = np.random.default_rng(seed)
    lengths = letters.integers(2, 12, _WORDS)
    words = ["".join(map(chr, letters.integers(97, 123, length))) for length in lengths]
    chances = np.cumsum(1 / np.arange(1, _WORDS + 1))
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            chosen = np.searchsorted(chances, draw.random(100_000) * chances[-1])
            for start in range(0, len(chosen), 20):
                file.write(" ".join(words[one] for one in chosen[start : start + 20]) + (" " if one_line else " .\n"))


if __name__ == "__main__":
    raise SystemExit(guarded("benchmark_text", main))
