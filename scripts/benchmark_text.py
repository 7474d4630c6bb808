"""What it takes to open a text that is larger than memory: seconds and the largest resident size of every process.

    python scripts/benchmark_text.py --megabytes 540 --workers 2 --kill 2     # as large as WikiText-103
    python scripts/benchmark_text.py --megabytes 50 --one-line

Makes a text of words by Zipf's law, opens it as `data=text` in processes of their own, twice (the tokens are there the
second time), and draws an epoch's first thousand windows. With `--kill N` all processes of the first opening are killed
(SIGKILL) N times while tokens are made, and the same command goes on; an undisturbed opening by one process in a cache
of its own must then have the same tokens. With `--minutes M` it is ended then, and only the memory up to there is told.
The largest resident size (VmHWM) is that of the largest process of all these openings. Adds a row to
results/benchmarks/large_text.json. Exit codes: 0; 1 where tokens differ.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.errors import Stopped
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]
_WORDS = 270_000  # different ones, as in WikiText-103
_LOOK = 0.05  # seconds between two looks at the processes
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
print(json.dumps({"seconds": round(opened, 1), "imports_mb": bare // 1024,
                  "tokens": len(task._parts["train"].ids), "fingerprint": task.data_fingerprint}))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes, opens and writes."""
    parser = Parser("benchmark_text.py", __doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one-line", action="store_true", help="no line end in all of the training text")
    parser.add_argument("--kill", type=int, default=0, help="so many times while tokens are made (0)")
    parser.add_argument(
        "--minutes", type=float, help="stop then: of a text too large for this machine, its memory alone"
    )
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--text", type=Path, help="a folder with train.txt and test.txt instead of a made text")
    parser.add_argument("--folder", type=Path, help="for the text and its tokens (a temporary one)")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "benchmarks" / "large_text.json")
    arguments = parser.parse_args(argv)

    import torch

    from pdp.benchmarks.benchmarking import machine

    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        folder = Path(place)
        text = arguments.text or folder
        if not arguments.text:
            make_text(folder / "train.txt", arguments.megabytes, arguments.one_line, 1)
            make_text(folder / "test.txt", 1, False, 2)
        words = ["model=gpt2_tiny", "prune=none", "data=text", f"data.root={text}", "data.context=512",
                 f"data.vocabulary={arguments.vocabulary}",
                 "model.sizes={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 512}"]  # fmt: skip
        blocks = sum(-(-path.stat().st_size // 2**23) for path in text.glob("*.txt"))
        row: dict[str, Any] = {
            "megabytes": (text / "train.txt").stat().st_size // 10**6,
            "one_line": arguments.one_line,
            "workers": arguments.workers,
            "vocabulary": arguments.vocabulary,
            "blocks": blocks,
        }
        measure = partly if arguments.minutes else wholly
        row |= measure(arguments, [*words, f"data.workers={arguments.workers}"], folder, blocks)
    row |= {"load_average": round(os.getloadavg()[0], 1), "machine": machine(torch.device("cpu"))}
    rows = json.loads(arguments.to.read_text()) if arguments.to.is_file() else []
    arguments.to.parent.mkdir(parents=True, exist_ok=True)
    arguments.to.write_text(json.dumps([*rows, row], indent=1) + "\n")
    for key, value in row.items():
        print(f"{key}: {value}")
    return int(not (row.get("same_fingerprint", True) and row.get("same_as_undisturbed", True)))


def wholly(arguments: Namespace, words: list[str], folder: Path, blocks: int) -> dict[str, Any]:
    """Opens the text twice, the first time with kills, and after those once more undisturbed by one process."""
    killed_at = []
    killed = Opening(words, folder / "cache")
    for number in range(arguments.kill):
        killed_at.append(killed.until(blocks * (number + 1) // (arguments.kill + 1)))
        killed.again()
    first = killed.end()
    second = Opening(words, folder / "cache").end()
    found = {
        **first,
        "processes_mb": killed.sizes(),
        "seconds_again": second["seconds"],
        "peak_again_mb": second["peak_mb"],
        "same_fingerprint": first["fingerprint"] == second["fingerprint"],
    }
    if arguments.kill:
        alone = Opening([*words, "data.workers=0"], folder / "alone").end()
        found |= {
            "killed_after_blocks": killed_at,
            "seconds_undisturbed_in_one_process": alone["seconds"],
            "peak_undisturbed_mb": alone["peak_mb"],
            "same_as_undisturbed": alone["fingerprint"] == first["fingerprint"],
        }
    return found


def partly(arguments: Namespace, words: list[str], folder: Path, blocks: int) -> dict[str, Any]:
    """Opens the text until the time is over."""
    opening = Opening(words, folder / "cache")
    made = opening.until(blocks, 60 * arguments.minutes)
    return {"stopped_after_blocks": made, "minutes": arguments.minutes, "processes_mb": opening.sizes()}


@dataclass
class Opening:
    """A text opened by processes of a session of their own, whose largest resident sizes are watched."""

    words: list[str]
    cache: Path
    largest: dict[int, int] = field(default_factory=dict)  # kB of each process, by its id

    def __post_init__(self) -> None:
        self.again()

    def again(self) -> None:
        """Gives the command, anew where it was killed."""
        environment = os.environ | {"PDP_CACHE_DIR": str(self.cache), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _OPEN, *self.words]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def until(self, blocks: int, seconds: float = float("inf")) -> int:
        """Kills all processes when so many blocks of tokens are there, or the time is over; how many there were."""
        end = time.monotonic() + seconds
        while (made := len(list(self.cache.glob("tokens/*/blocks/*.tokens")))) < blocks and time.monotonic() < end:
            self.look()
            if self.process.poll() is not None:
                raise Stopped("the text was open before it could be killed: give more megabytes, or fewer kills")
            time.sleep(_LOOK)
        self.look()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        return made

    def end(self) -> dict[str, Any]:
        """Waits for the end; what was opened, and the size in MB of the largest process."""
        while self.process.poll() is None:
            self.look()
            time.sleep(_LOOK)
        said = self.process.communicate()[0]
        if self.process.returncode:
            raise Stopped("the text could not be opened, see above")
        return json.loads(said) | {"peak_mb": self.sizes()[0]}

    def look(self) -> None:
        """Notes the largest resident size of every process of the session."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.process.pid:
                        told = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
                        self.largest[int(entry.name)] = int(told["VmHWM"].split()[0])
                except (OSError, KeyError):  # it has just ended
                    continue

    def sizes(self) -> list[int]:
        """Of every process in MB, the largest first."""
        return sorted((size // 1024 for size in self.largest.values()), reverse=True)


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
