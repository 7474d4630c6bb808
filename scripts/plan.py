"""Prints the whole matrix: every experiment's command, published numbers, our records, and the estimated cost.

    python scripts/plan.py                          all experiments and studies
    python scripts/plan.py resnet50_nm gpt2         experiments whose names contain one of the words
    python scripts/plan.py --csv plan.csv           also written, with every column; studies in plan_studies.csv

A cell is a file of conf/experiment, or one of them at another sparsity given by conf/sweep. Published numbers
(results/published.csv) stand beside it with the status of their source: verified, third party or unverified. GPU hours
are computed from measured steps on a GPU: of the same model and data (results/records), or of the same model
(results/benchmarks); without any the cell is empty. The cost of a study in CPU hours is that of its kept runs; before
there are any, a few steps of each method are timed here. Exit codes: 0 done; 2 refused.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Composes every experiment and prints the matrix."""
    parser = Parser("plan.py", __doc__)
    parser.add_argument("words", nargs="*", help="parts of experiments' names (all)")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="published.csv, records, benchmarks")
    arguments = parser.parse_args(argv)

    from rich.console import Console
    from rich.progress import track

    from pdp.config.groups import CONF, choices
    from pdp.runs.published import load_published
    from pdp.studies.cost import study_table, timed_here
    from pdp.studies.plan import find_names, plan_table, read_gpu_benchmarks, read_kept, read_plan, swept
    from pdp.studies.study import read_study

    error = Console(stderr=True)
    names = find_names(arguments.words, choices("experiment"))
    cells = read_plan(track(names, "composing", console=error, transient=True, disable=not error.is_terminal))
    kept = read_kept(arguments.results)
    published = load_published(arguments.results / "published.csv")
    matrix = plan_table(swept(cells), published, kept, read_gpu_benchmarks(arguments.results))
    found = [read_study(path) for path in sorted((CONF / "study").glob("*.yaml"))]
    studies = study_table(found, kept, None if arguments.words else timed_here)
    show(matrix, ("command", "epochs", "published", "ours", "gpu_hours", "speed_from"), "Experiments")
    if not arguments.words:
        show(studies, ("command", "runs", "kept", "cpu_hours", "seconds_from"), "Studies")
    unknown = int(matrix.gpu_hours.isna().sum())
    print(
        f"{len(cells)} experiments, {len(matrix)} cells with those of conf/sweep; "
        f"GPU hours known of {len(matrix) - unknown}"
        + (f", of {unknown} no step of the model was measured on a GPU" if unknown else "")
    )
    if arguments.csv:
        beside = arguments.csv.with_name(f"{arguments.csv.stem}_studies.csv")
        matrix.to_csv(arguments.csv, index=False)
        studies.to_csv(beside, index=False)
        print(f"written: {arguments.csv}, {beside}")
    return 0


def show(frame, columns: Sequence[str], title: str) -> None:
    """Prints a table on the terminal; elsewhere lines are not truncated."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    for name in columns:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in frame.to_dict("records"):
        table.add_row(*(spell(row[name]) for name in columns))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000
    console.print(table)


def spell(value: object) -> str:
    """The text of a table cell; empty for an unknown number."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.1f}"
    return str(value)


if __name__ == "__main__":
    raise SystemExit(guarded("plan", main))
