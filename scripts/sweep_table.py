"""Makes the table of a sweep from the records of its runs: on the terminal, as CSV and as Markdown.

    python scripts/sweep_table.py results/runs/.sweeps/1a2b3c4d      a sweep's folder, as submit.py printed it
    python scripts/sweep_table.py results/runs --to results/here     any folder of runs

Writes runs.csv (a row per run), cells.csv (over seeds) and table.md to the sweep's folder or to --to. Exit codes: 0; 2
refused; 3 runs of the sweep are missing, and the tables contain the others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.cluster.manifest import SweepFolder
from pdp.errors import Refusal, Stopped
from pdp.runs.store import current_runs
from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Makes, prints and writes the tables."""
    parser = Parser("sweep_table.py", __doc__)
    parser.add_argument("folder", type=Path, help="a sweep's folder, or one of runs")
    parser.add_argument("--to", type=Path, help="where the tables go (the folder)")
    parser.add_argument("--wandb", action="store_true", help="send the tables to W&B as an artifact too")
    arguments = parser.parse_args(argv)
    folder, missing = arguments.folder, []
    if not folder.is_dir():
        raise Refusal(f"{folder} is no folder: give a sweep's folder, or one of runs")
    sweep = SweepFolder(folder)
    if sweep.manifest.is_file():
        runs = [run.path for run in sweep.runs()]
        missing = [run for run in sweep.runs() if not run.finished]
    else:
        runs = current_runs(folder)

    from pdp.reports.sweep_table import make_tables, print_table, write_tables

    tables = make_tables(runs)
    print_table(tables, str(folder))
    written = write_tables(tables, arguments.to or folder)
    print(f"written: {', '.join(map(str, written))}")
    if arguments.wandb:
        from pdp.tracking.wandb_tables import send_tables

        print(send_tables(folder.resolve().name, written, arguments.to or folder, next(iter(runs), None)))
    if missing:
        names = "; ".join(f"{run.run_id} {run.varied}" for run in missing[:8]) + ("; ..." if len(missing) > 8 else "")
        raise Stopped(f"{len(missing)} of {len(runs)} runs are missing ({names}): submit the sweep again")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("sweep_table", main))
