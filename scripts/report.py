"""Puts tables, figures and findings on one page that opens without a network.

    python scripts/report.py                        results/report.html
    python scripts/report.py --to page.html

The tables and figures are made as by scripts/tables.py and scripts/figures.py. For runs in progress see
scripts/dashboard.py. Exit codes: 0; 2 refused; 3 the page could not be written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page."""
    parser = Parser("report.py", __doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where records/ lies (results)")
    parser.add_argument("--to", type=Path, help="(results/report.html)")
    arguments = parser.parse_args(argv)
    if not (arguments.results / "records").is_dir():
        raise Refusal(f"--results {arguments.results} holds no records/: give the folder that does")

    from pdp.reports import page
    from pdp.reports.figures import draw_all
    from pdp.reports.report import report
    from pdp.reports.runs import read_kept
    from pdp.reports.tables import make_sheets

    found = arguments.results / "README.md"
    prose = found.read_text(encoding="utf-8") if found.is_file() else "# Results\n"
    sheets = make_sheets(arguments.results)
    drawn, left_out = draw_all(read_kept(arguments.results), arguments.results / "benchmarks")
    target = arguments.to or arguments.results / "report.html"
    page.write(report(prose, sheets, drawn, left_out), target)
    print(f"{target}: {len(sheets)} tables, {len(drawn)} figures, {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("report", main))
