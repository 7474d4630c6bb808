"""Tests short runs of every method against random kills, signals, full disks, damaged files and lost processes.

    python scripts/soak.py --minutes 60                      writes results/benchmarks/soak.json
    python scripts/soak.py --minutes 1 --to /tmp/soak.json --seed 7
    python scripts/soak.py --kills 100 --kinds "killed (SIGKILL)" --to results/benchmarks/soak_kills.json

Each trial starts a run of three epochs, disturbs it at a random moment, gives the same command again, and compares
weights, metric and histories bit for bit with those of an undisturbed run. For every kind of disturbance and every case
it reports the number of trials, of SIGKILLs that met a process at work, and of successes. The folder of a failed trial
is kept. Exit codes: 0 all succeeded; 1 some failed; 2 refused.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs trials for the given time and writes the table."""
    parser = Parser("soak.py", __doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--kills", type=int, help="end after so many SIGKILLs if that is before the time is over")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument("--to", type=Path, default=ROOT / "results" / "benchmarks" / "soak.json", help="the table")
    parser.add_argument("--folder", type=Path, help="where the runs lie (a temporary folder)")
    parser.add_argument("--cases", nargs="*", help="only these cases (all)")
    parser.add_argument("--kinds", nargs="*", help="only kinds that begin so (all)")
    arguments = parser.parse_args(argv)

    from pdp.benchmarks.misfortunes import KINDS, trial
    from pdp.benchmarks.soaking import CASES, NotHeld, Soak, can_mount

    cases = arguments.cases or list(CASES)
    if unknown := [case for case in cases if case not in CASES]:
        raise Refusal(f"--cases {unknown[0]} is none: give some of {', '.join(CASES)}")
    kinds = [kind for kind in KINDS if not arguments.kinds or kind.startswith(tuple(arguments.kinds))]
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not can_mount(folder):
        print("no small file system can be mounted here (that takes root): full disks are left out")
        kinds = [kind for kind in kinds if "disk" not in kind]
    soak = Soak(folder, random.Random(arguments.seed))
    soak.prepare()
    begun = time.monotonic()
    order: list[tuple[str, str]] = []
    tried: dict[tuple[str, str], list[Trial]] = {}
    failures: list[str] = []
    while time.monotonic() - begun < 60 * arguments.minutes and soak.kills < (arguments.kills or float("inf")):
        if not order:  # every combination once before any is repeated
            order = [(kind, case) for kind in kinds for case in cases]
            soak.chance.shuffle(order)
        kind, case = order.pop()
        before, well = soak.kills, False
        try:
            trial(soak, kind, case)
            well = True
        except NotHeld as failure:
            failures.append(f"{kind}; {case}: {failure}")
            print(failures[-1], flush=True)
        tried.setdefault((kind, case), []).append(Trial(soak.kills - before, well))
    write(arguments.to, tried, failures, arguments.seed, time.monotonic() - begun)
    print(f"{soak.number} trials, {len(failures)} not held; {arguments.to}")
    if not failures and not arguments.folder:
        shutil.rmtree(folder)
    return int(bool(failures))


class Trial(NamedTuple):
    """How many SIGKILLs met a process at work, and whether all was as in the undisturbed run."""

    kills: int
    held: bool


def write(
    path: Path, tried: dict[tuple[str, str], list[Trial]], failures: Sequence[str], seed: int, seconds: float
) -> None:
    """Writes the numbers of trials, SIGKILLs and successes: in total, for each kind and for each case."""
    import torch

    from pdp.benchmarks.benchmarking import machine, write_figures

    def row(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
        kills, ends = sum(one.kills for one in trials), sum(one.held for one in trials)
        return {"trials": name, "tried": len(trials), "kills": kills, "held": ends}

    rows = [row("all", [one for some in tried.values() for one in some])]
    for place in (0, 1):
        for name in sorted({names[place] for names in tried}):
            rows.append(row(name, [one for names, some in tried.items() if names[place] == name for one in some]))
    where = machine(torch.device("cpu"), 1) | {"seed": seed, "minutes": round(seconds / 60, 1)}
    write_figures(path, where | {"not_held": [line.splitlines()[0] for line in failures]}, rows)


if __name__ == "__main__":
    raise SystemExit(guarded("soak", main))
