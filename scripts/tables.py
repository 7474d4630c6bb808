"""Makes the tables in results/tables from the records in results/records and the numbers in results/published.csv.

    python scripts/tables.py                       results/tables/*.md, *.csv and *.tex, all of them
    python scripts/tables.py --results elsewhere   the same for another folder that holds records/

Random, N:M and channel pruning and language, one file per data set, our numbers beside published ones; methods over
sparsities; PDP against each method over seeds; training cost; hyper-parameters. Records of studies named *_tuning are
in no table. Commit new records together with the regenerated tables: a test compares them. Exit codes: 0; 2 refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Writes every table."""
    parser = Parser("tables.py", __doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="where records/ lies (results)")
    parser.add_argument("--to", type=Path, help="where the tables go (results/tables, where those without records go)")
    arguments = parser.parse_args(argv)
    if not (arguments.results / "records").is_dir():
        raise Refusal(f"--results {arguments.results} holds no records/: give the folder that does")

    from pdp.reports.tables import make_sheets, outlived, write_sheets

    sheets = make_sheets(arguments.results)
    folder = arguments.to or arguments.results / "tables"
    written = write_sheets(sheets, folder)
    for sheet in sheets:
        print(f"{sheet.name}: {sum(len(section.rows) for section in sheet.sections)} rows")
    if arguments.to is None:
        for path in outlived(folder, written):
            path.unlink()
            print(f"{path}: removed, nothing is recorded for it")
    print(f"{folder}: {len(written)} files of {len(sheets)} tables")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("tables", main))
