"""Runs a study: methods x sparsities x seeds, each method at the setting that its validation chose; prints one table.

python scripts/compare.py conf/study/digits_random.yaml            all runs that are not kept yet, then the table
python scripts/compare.py conf/study/digits_random.yaml --table    the table of what is kept so far
python scripts/compare.py conf/study/digits_random.yaml --time     steps timed in turn, for the table; quiet machine
python scripts/compare.py conf/study/digits_random.yaml --plan     what would be run

A study file contains the arguments that all runs share, sparsities, seeds, and for each method the settings to choose
from. Each setting is run once at tuning.sparsity with tuning.seed, which is not among the seeds, and the one with the
best validation metric at the last epoch is chosen. With `tuning: none` nothing is chosen: every setting is run with
every seed and has its own row. Records are kept in results/records/<study> (and <study>_tuning) as runs end, those of
your own studies below results/runs/.studies. Runs found there count as done, so the same command continues a study. A
study with a `search` must first be tuned by scripts/tune.py; one with `stages` is run stage by stage, or a single stage
with --stage. Arguments after the file apply to every run, such as data.root=/data/fashion_mnist; the place of the data
is not part of a run's identity. Exit codes: 0 done; 2 refused; 3 some runs failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def make_parser() -> Parser:
    """The command line."""
    parser = Parser("compare.py", __doc__)
    parser.add_argument("study", type=Path, help="a study file, such as conf/study/digits_random.yaml")
    parser.add_argument("overrides", nargs="*", help="further words for every run, such as data.root=/data/x")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each (2)")
    parser.add_argument(
        "--results",
        type=Path,
        help="where records/ lies (results; of a study that is not in conf/study, results/runs/.studies)",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("results/runs/.compare"), help="for runs in progress")
    parser.add_argument("--keep-files", action="store_true", help="leave whole runs there, weights included")
    parser.add_argument("--stage", type=int, help="only this stage of the study, counted from 1")
    parser.add_argument("--table", action="store_true", help="run nothing, show what is kept")
    parser.add_argument("--time", action="store_true", help="time every method's step against the dense one, in turn")
    parser.add_argument("--plan", action="store_true", help="run nothing, show what would be run")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Does what the command line asks for; returns the exit code."""
    from pdp.config.groups import CONF
    from pdp.studies.study import read_study

    whole = read_study(arguments.study)
    study = whole.at_stage(arguments.stage)
    if arguments.results is None:
        # Only the project's own studies have their results committed.
        ours = arguments.study.resolve().parent == CONF / "study"
        arguments.results = Path("results") if ours else Path("results/runs/.studies")
    study.common = (*study.common, *arguments.overrides)
    if arguments.jobs < 1:
        raise Refusal(f"--jobs={arguments.jobs}: give at least 1")
    failed = 0
    if arguments.plan:
        for method in study.methods:
            for cell in study.cells(method):
                print("python train.py " + " ".join(cell.overrides))
        return 0
    if arguments.time:
        time_steps(study, arguments.results)
    elif not arguments.table:
        failed = run_all(study, arguments)
    show(study, whole, arguments.results)
    return 3 if failed else 0


def run_all(study, arguments: argparse.Namespace) -> int:
    """Runs the tuning runs first, then the table's; returns how many failed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from pdp.studies.runs import choose, run_cells

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = 0
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:

        def work(title: str, cells: list) -> None:
            nonlocal failed
            bar = progress.add_task(title, total=len(cells))

            def tell(outcome: str, cell) -> None:
                progress.advance(bar)
                if outcome != "kept":
                    console.print(f"{cell.label}: {outcome}", highlight=False, soft_wrap=True)

            failed += run_cells(
                cells, arguments.results, arguments.output_dir, arguments.jobs, arguments.keep_files, tell
            )

        work("settings", [cell for method in study.methods for cell in study.tuning(method)])
        if failed:
            console.print("a setting's run failed, so no setting is chosen: see above, then run the same command")
            return failed
        chosen = {method: choose(study, method, arguments.results) for method in study.methods}
        for method, setting in chosen.items():
            if isinstance(setting, Mapping):
                for sparsity, words in setting.items():
                    at = "" if sparsity is None else f" {sparsity:g}"
                    console.print(f"{method}{at}: {' '.join(words) or 'its defaults'}", highlight=False)
            elif study.tuned and len(study.methods[method]) > 1:
                console.print(f"{method}: {' '.join(setting) or 'its defaults'}", highlight=False)
        runs = [cell for cells in study.rows(chosen).values() for cell in cells]
        # Sorted by stage and then by seed, so that a table of fewer seeds is available early.
        work("runs", sorted(runs, key=lambda cell: (study.stage_of(cell), cell.seed)))
    return failed


def time_steps(study, results: Path) -> None:
    """Times the steps of each row of the table, with the chosen settings, and stores the ratios beside it."""
    import pandas as pd

    from pdp.benchmarks.step_timing import ratios
    from pdp.studies.runs import choose

    chosen = {method: choose(study, method, results) for method in study.methods}
    cells = {row: runs[0] for row, runs in study.rows(chosen).items()}
    if "dense" not in cells:
        raise Refusal("the study has no dense runs to time against: name dense among its methods")
    words = {row: cell.overrides for row, cell in cells.items() if row != "dense"}
    rows = ratios(cells["dense"].overrides, words, lambda line: print(line, flush=True))
    folder = results / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / f"{study.name}_steps.csv", index=False)


_WIDE = ("soft", "cuts, ms", "extra memory", "extra parameters")  # columns left out in a narrow terminal


def show(study, whole, results: Path) -> None:
    """Prints the table of a study's records, and writes it as Markdown and CSV beside them."""
    import pandas as pd
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from pdp.reports.runs import read_runs
    from pdp.reports.study_table import markdown, read_study, study_table
    from pdp.studies.missing import missing_words

    name = study.name
    runs = read_study(results, name)
    if not study.tuned:
        from pdp.studies.runs import kept_rows

        rows_of = kept_rows(study, results)
        runs = read_runs(rows_of, name)
        runs["method"] = [rows_of[path] for path in runs.path]
    if runs.empty:
        raise Refusal(f"{results / 'records' / name} holds no record yet: run the study first")
    steps = results / "studies" / f"{name}_steps.csv"
    timed = pd.read_csv(steps).set_index("method").step_ratio.to_dict() if steps.is_file() else None
    frame = study_table(runs, timed)
    text = markdown(frame)
    heads, _, *rows = [[one.strip() for one in line.strip("|").split("|")] for line in text.splitlines()]
    console = Console()
    shown = [place for place, head in enumerate(heads) if place > 1 and (console.width > 110 or head not in _WIDE)]
    for group in dict.fromkeys((row[0], row[1]) for row in rows):
        table = Table(box=SIMPLE, title=" ".join(group).replace("none", "dense"))
        for place in shown:  # the first column names the settings, whole
            table.add_column(heads[place], overflow="fold", min_width=24 if place == shown[0] else None)
        for row in rows:
            if (row[0], row[1]) == group:
                table.add_row(*(row[place] for place in shown))
        console.print(table)
    absent = missing_words(whole, runs)
    folder = results / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text + (f"\n{absent}\n" if absent else ""), encoding="utf-8")
    frame.to_csv(folder / f"{name}.csv", index=False)
    print(f"{len(runs)} records in {results / 'records' / name}; table: {folder / name}.md and .csv")
    if absent:
        print(absent)


def main() -> int:
    """Runs the script and returns its exit code."""
    return guarded("compare.py", lambda: run(make_parser().parse_intermixed_args()))


if __name__ == "__main__":
    sys.exit(main())
