"""Tunes a study: equally many trials for every method and the dense model, at each sparsity, judged by validation.

python scripts/tune.py conf/study/fashion_long.yaml            draws trials, runs those not kept yet, prints the best
python scripts/tune.py conf/study/fashion_long.yaml --draw     draws them and runs nothing
python scripts/tune.py conf/study/fashion_long.yaml --table    the result of each trial, and which is chosen

Trials run with tuning.seed, which is not among the study's seeds, and with the arguments tuning.words (fewer epochs,
for example). The first trial of a method is its own default setting; the others are drawn by Optuna from the ranges in
`search`. The drawn trials are stored in results/studies/<study>_trials.json, and running them needs no Optuna. Records
and histories are kept in results/records/<study>_tuning as runs end. Runs found there count as done, so the same
command continues. Then scripts/compare.py runs the study, each method at each sparsity with its best setting. Arguments
after the file apply to every run, such as data.root=/data/x. Exit codes: 0 done; 2 refused; 3 some runs failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("tune.py", __doc__)
    parser.add_argument("study", type=Path, help="a study file with a search, such as conf/study/fashion_long.yaml")
    parser.add_argument("overrides", nargs="*", help="further words for every run, such as data.root=/data/x")
    parser.add_argument("--stage", type=int, help="only what this stage of the study needs, counted from 1")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (2)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where records/ lies (results)")
    parser.add_argument("--output-dir", type=Path, default=Path("results/runs/.tune"), help="for runs in progress")
    parser.add_argument("--draw", action="store_true", help="draw the trials and run nothing")
    parser.add_argument("--table", action="store_true", help="run nothing, show how the trials did")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Does what the command line asks for; returns the exit code."""
    from pdp.studies.study import read_study
    from pdp.studies.tuning import draw_trials, left_to_run, report

    study = read_study(arguments.study).at_stage(arguments.stage)
    study.common = (*study.common, *arguments.overrides)
    if study.search is None:
        raise Refusal(f"{arguments.study} has no search: give tuning.trials and search, see conf/study")
    if arguments.jobs < 1:
        raise Refusal(f"--jobs={arguments.jobs}: give at least 1")
    failed = 0
    while not arguments.table:
        fresh = draw_trials(study, arguments.results, arguments.jobs)
        if arguments.draw:
            print(f"{fresh} trials drawn" if fresh else "all trials that can be drawn before others have run are drawn")
            return 0
        cells = left_to_run(study, arguments.results)
        if not cells:
            break
        failed = run_trials(study, cells, arguments)
        if failed:
            break
    print(report(study, arguments.results))
    return 3 if failed else 0


def run_trials(study, cells: list, arguments: argparse.Namespace) -> int:
    """Runs the trials that were drawn; returns how many failed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from pdp.studies.runs import run_cells

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("trials", total=len(cells))

        def tell(outcome: str, cell) -> None:
            progress.advance(bar)
            if outcome != "kept":
                console.print(f"{cell.label}: {outcome}", highlight=False, soft_wrap=True)

        return run_cells(cells, arguments.results, arguments.output_dir, arguments.jobs, False, tell)


def main() -> int:
    """Runs the script and returns its exit code."""
    try:
        return run(make_parser().parse_intermixed_args())
    except Refusal as refusal:
        print(f"tune.py: {refusal}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
