"""Lists, keeps, cleans and archives the runs of train.py.

python scripts/runs.py list                                 every run below results/runs
python scripts/runs.py table --to results/here              runs.csv, cells.csv and table.md of the finished ones
python scripts/runs.py keep 1a2b3c4d-0 --study first        record, layers, history, histograms to results/records
python scripts/runs.py clean                                what could be deleted: checkpoints of finished runs
python scripts/runs.py clean --yes                          deletes it
python scripts/runs.py archive 1a2b3c4d --to runs.tar       whole runs, all seeds, without their checkpoints

A RUN is the directory of one seed or of several, or an id as `list` shows it, with or without its seed. Exit codes: 0
done; 2 refused; 3 files could not be read or written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.runs.clearing import archive, delete, to_delete
from pdp.runs.differences import differences
from pdp.runs.keeping import keep as keep_run
from pdp.runs.keeping import size
from pdp.runs.store import current_runs, find_runs, read_run, resolve
from pdp.scripting import Parser, guarded


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("runs.py", __doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs/ and records/ lie (results)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|table|keep|clean|archive")

    one = commands.add_parser("list", help="a table of all runs")
    one.add_argument("folder", nargs="?", type=Path, help="where to look (results/runs)")

    one = commands.add_parser("table", help="the finished runs as a table over seeds, from their records")
    one.add_argument("folder", nargs="?", type=Path, help="where to look (results/runs)")
    one.add_argument("--to", type=Path, metavar="FOLDER", help="write runs.csv, cells.csv and table.md here")

    one = commands.add_parser("keep", help="copy what tables are made from to results/records, at most 100 kB a run")
    one.add_argument("runs", nargs="+", metavar="RUN")
    one.add_argument("--study", required=True, help="the folder in results/records")

    one = commands.add_parser("clean", help="delete checkpoints of finished runs; without --yes only say which")
    one.add_argument("runs", nargs="*", metavar="RUN", help="these alone (all below results/runs)")
    one.add_argument("--finished", action="store_true", help="whole runs too, where kept in results/records")
    one.add_argument("--unfinished", action="store_true", help="unfinished runs too, whole; running ones never")
    one.add_argument("--yes", action="store_true", help="delete")

    one = commands.add_parser("archive", help="a tar file of whole runs without their checkpoints; deletes nothing")
    one.add_argument("runs", nargs="+", metavar="RUN")
    one.add_argument("--to", required=True, type=Path, metavar="FILE.tar")
    return parser


def show(folder: Path) -> None:
    """Prints the table of all runs in `folder`; raises `Refusal` if there is no such folder."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from pdp.wording import score

    if not folder.is_dir():
        raise Refusal(f"{folder} is no folder: give the one that holds the runs")
    runs = [read_run(path) for path in find_runs(folder)]
    differing = differences(runs)
    table = Table(box=SIMPLE, title=f"runs in {folder}", title_justify="left")
    left = ("id", "model", "data", "method", "pattern", "differs in")
    right = ("sparsity", "state", "epoch", "metric", "when (UTC)")
    for column in (*left, *right):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for run in runs:
        metric = "" if run.metric is None else f"{run.metric_name} {score(run.metric_name, run.metric)}".strip()
        table.add_row(
            run.id,
            *(value or "?" for value in (run.model, run.data, run.method, run.pattern)),
            differing[run.path],
            run.asked,
            run.state,
            "" if run.epochs is None else f"{run.epoch or 0}/{run.epochs}",
            metric,
            "" if run.when is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.when)),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # one line per run in files and pipes
    console.print(table)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(Counter(run.state for run in runs).items()))
    print(f"{len(runs)} runs" + (f": {counts}" if counts else ""))


def tabulate(folder: Path, target: Path | None) -> None:
    """Prints the table of the finished runs and writes it to `target`, if given; raises `Refusal` without a folder."""
    from pdp.reports.sweep_table import make_tables, print_table, write_tables

    if not folder.is_dir():
        raise Refusal(f"{folder} is no folder: give the one that holds the runs")
    tables = make_tables(current_runs(folder))
    print_table(tables, str(folder))
    if target:
        print(f"written: {', '.join(map(str, write_tables(tables, target)))}")


def keep(arguments: argparse.Namespace, runs: Path) -> None:
    """Copies the named runs to results/records."""
    for path in resolve(arguments.runs, runs):
        target, left_out = keep_run(path, arguments.study, arguments.results)
        print(f"{target}: {size(target):,} bytes" + "".join(f"; {words}" for words in left_out))


def clean(arguments: argparse.Namespace, runs: Path) -> None:
    """Prints what could be deleted, and deletes it with --yes."""
    paths = resolve(arguments.runs, runs) if arguments.runs else find_runs(runs)
    plan = list(to_delete(paths, arguments.results, arguments.finished, arguments.unfinished))
    total = 0
    for path, reason in plan:
        taken = size(path)
        total += taken
        print(f"{path}  {taken / 1e6:.1f} MB  {reason}")
    if plan and arguments.yes:
        for path, reason in plan:
            delete(path, reason)
        print(f"deleted: {total / 1e6:.1f} MB")
    else:
        print(f"{total / 1e6:.1f} MB could be deleted; --yes does it" if plan else "nothing to delete")


def run(argv: Sequence[str] | None) -> None:
    """Runs one command."""
    arguments = make_parser().parse_args(argv)
    runs = arguments.results / "runs"
    if arguments.command == "list":
        show(arguments.folder or runs)
    elif arguments.command == "table":
        tabulate(arguments.folder or runs, arguments.to)
    elif arguments.command == "keep":
        keep(arguments, runs)
    elif arguments.command == "clean":
        clean(arguments, runs)
    else:
        written = archive(resolve(arguments.runs, runs), arguments.to)
        print(f"{arguments.to}: {written / 1e6:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return guarded("runs", lambda: run(argv))


if __name__ == "__main__":
    raise SystemExit(main())
