"""Makes a page of a folder of runs, for those without W&B: one HTML file that opens without a network.

    python scripts/dashboard.py                                results/runs -> results/dashboard.html
    python scripts/dashboard.py results/runs --to page.html
    python scripts/dashboard.py --watch 30                     writes it again every 30 seconds, until Ctrl-C

It shows accuracy against sparsity and against MACs, per-layer shares, training cost, a table by cell, and the runs in
progress with their curves, read from history.jsonl. Exit codes: 0; 2 refused; 3 the page could not be written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, once or repeatedly."""
    parser = Parser("dashboard.py", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results/runs"), help="of runs (results/runs)")
    parser.add_argument("--to", type=Path, default=Path("results/dashboard.html"), help="(results/dashboard.html)")
    parser.add_argument("--watch", type=int, metavar="SECONDS", help="write it again every so many seconds")
    arguments = parser.parse_args(argv)
    if arguments.watch is not None and arguments.watch < 1:
        raise Refusal(f"--watch {arguments.watch}: give at least one second")

    from pdp.reports.dashboard import write_page

    while True:
        try:
            words = write_page(arguments.folder, arguments.to, arguments.watch)
            print(f"{arguments.to}: {words}", flush=True)
        except Refusal as refusal:
            if arguments.watch is None:
                raise
            print(f"dashboard: {refusal}", file=sys.stderr, flush=True)  # it may be resolved while we watch
        if arguments.watch is None:
            return 0
        try:
            time.sleep(arguments.watch)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    raise SystemExit(guarded("dashboard", main))
