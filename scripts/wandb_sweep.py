"""Writes the W&B form of a sweep in conf/sweep, for `wandb sweep` and `wandb agent`.

    python scripts/wandb_sweep.py baselines model=resnet20                  on the terminal
    python scripts/wandb_sweep.py baselines model=resnet20 --to sweep.yaml ; wandb sweep sweep.yaml

Typed arguments replace the file's or are added to them, as with submit.py --sweep. Every cell is checked. The agent
runs train.py with the sweep's arguments and tracker=wandb. Exit codes: 0; 2 refused; 3 the file could not be written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Checks every cell and writes the sweep."""
    from pdp.config.sweep import wandb_form

    parser = Parser("wandb_sweep.py", __doc__)
    parser.add_argument("sweep", help="a name in conf/sweep")
    parser.add_argument("words", nargs="*", metavar="key=value[,value]")
    parser.add_argument("--to", type=Path, metavar="FILE", help="where to (the terminal)")
    arguments = parser.parse_intermixed_args(argv)
    text = yaml.safe_dump(wandb_form(arguments.sweep, arguments.words), sort_keys=False)
    if arguments.to:
        arguments.to.write_text(text, encoding="utf-8")
        print(f"written: {arguments.to}")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("wandb_sweep", main))
