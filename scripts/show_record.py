"""Shows the closing table of a run or a kept record, and draws it as a picture.

python scripts/show_record.py results/records/first_command/<run>/seed0
python scripts/show_record.py results/records/first_command/<run>/seed0 --svg results/figures/first_run.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.runs.record import read_record
from pdp.training.closing import show
from pdp.training.display import Display


def main() -> int:
    """Prints the table; the exit code is 2 if the folder holds no record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the directory of a finished run or of a kept record")
    parser.add_argument("--svg", type=Path, help="a file to draw the table into")
    arguments = parser.parse_args()
    try:
        record = read_record(arguments.run)
    except Refusal as refusal:
        print(f"show_record: {refusal}", file=sys.stderr)
        return Refusal.exit_code
    display = Display()
    if arguments.svg:
        display.console = Console(record=True, width=92, highlight=False)
    show(display, record, None, arguments.run)
    if arguments.svg:
        arguments.svg.parent.mkdir(parents=True, exist_ok=True)
        display.console.save_svg(str(arguments.svg), title="python train.py")
        print(f"drawn into {arguments.svg}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
