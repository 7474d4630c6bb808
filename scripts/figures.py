"""Draws the figures in results/figures from the records in results/records, as SVG.

    python scripts/figures.py                       draws all of them
    python scripts/figures.py --results elsewhere   the same for another folder that holds records/

Accuracy against sparsity, MACs, bytes and latency; per-layer shares and MACs; sparsity and metric over epochs; weights
that come back; histograms of weights and masks. A figure for which no record has the data is left out, with a line that
says what it needs. A figure that shows a single target shows the middle one. Exit codes: 0; 2 refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Draws every figure."""
    parser = Parser("figures.py", __doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where records/ lies (results)")
    parser.add_argument("--to", type=Path, help="where the figures go (results/figures)")
    arguments = parser.parse_args(argv)
    if not (arguments.results / "records").is_dir():
        raise Refusal(f"--results {arguments.results} holds no records/: give the folder that does")

    from pdp.reports.figures import draw_all, write_figures
    from pdp.reports.runs import read_kept

    drawn, left_out = draw_all(read_kept(arguments.results), arguments.results / "benchmarks")
    written = write_figures(drawn, arguments.to or arguments.results / "figures")
    for one in drawn:
        print(one.name)
    for line in left_out:
        print(line)
    print(f"{arguments.to or arguments.results / 'figures'}: {len(written)} files of {len(drawn)} figures")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("figures", main))
