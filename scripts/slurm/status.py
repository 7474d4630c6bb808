"""Shows the progress of a sweep: queued, running with epoch and time left, done, or failed with its last line.

    python scripts/slurm/status.py                     the sweep below results/runs that was submitted last
    python scripts/slurm/status.py 1a2b3c4d            by the name that submit.py printed, or by its folder
    python scripts/slurm/status.py --failed --logs     what did not end well, and the paths of its logs

States: done; running; queued; saved (it stopped in order to be resumed, and none of its jobs is waiting); failed (exit
code 1 is a bug of ours, 2 refused, 3 stopped in its work); lost (its job died without a message); missing (submitted,
but never started). Runs that were never submitted are counted but not listed. The same submit.py command starts again
every run that is not done, running or queued. Exit codes: 0; 2 refused; 3 Slurm did not answer.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pdp.cluster.manifest import SweepFolder, find_sweep
from pdp.cluster.state import STATES, RunState, read_states
from pdp.scripting import Parser, guarded
from pdp.wording import duration

NOT_WELL = ("saved", "failed", "lost", "missing")


def show(folder: SweepFolder, states: Sequence[RunState], logs: bool) -> None:
    """Prints the table and the counts."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from pdp.wording import score

    table = Table(box=SIMPLE, title=f"sweep {folder.path}", title_justify="left")
    for column in ("run", "what varies", "state", "job", "epoch", "metric", "left", "limit", "words"):
        table.add_column(column, overflow="fold", no_wrap=column != "words")
    for one in states:
        ending = folder.ending(one.run.number)
        words = one.words + (f" [{ending.log}]" if logs and ending else "")
        table.add_row(
            one.run.run_id,
            one.run.varied,
            one.state + (f" ({one.code})" if one.code is not None else ""),
            one.job,
            "" if one.epochs is None else f"{one.epoch or 0}/{one.epochs}",
            "" if one.metric is None else f"{one.metric_name} {score(one.metric_name, one.metric)}",
            "" if one.left is None else duration(one.left),
            one.limit,
            words,
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Shows one sweep."""
    parser = Parser("status.py", __doc__)
    parser.add_argument("sweep", nargs="?", help="a sweep's name or folder (the newest)")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="where the runs lie (results/runs)")
    parser.add_argument("--failed", action="store_true", help="only what did not end well")
    parser.add_argument("--logs", action="store_true", help="where each run's log lies")
    parser.add_argument("--no-slurm", action="store_true", help="do not ask Slurm, only read files")
    arguments = parser.parse_args(argv)
    folder = find_sweep(arguments.sweep, arguments.runs)
    states = read_states(folder, not arguments.no_slurm)
    show(folder, [one for one in states if not arguments.failed or one.state in NOT_WELL], arguments.logs)
    counts = Counter(one.state for one in states)
    print(f"{len(states)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    if others := len(folder.runs()) - len(states):
        print(f"{others} more of this sweep were never submitted: the same submit.py command submits them")
    left = [one.left for one in states if one.left is not None]
    if left:
        print(f"the slowest of those running needs about {duration(max(left))} more")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("status", main))
