"""Builds the W&B workspace and report that compare PDP with STR, GMP and OptG.

    python scripts/wandb_dashboard.py --project pdp --entity my-team
    python scripts/wandb_dashboard.py --offline dashboard.json         writes what would be sent; no server, no key

Views: accuracy against sparsity, against MACs, per-layer shares, curves, training cost. Needs pip install
"pdp-pruning[cluster]". Exit codes: 0; 2 refused; 3 the server failed or the file could not be written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Saves the dashboards to the server, or writes them to a file."""
    parser = Parser("wandb_dashboard.py", __doc__)
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT") or "pdp", help="(WANDB_PROJECT, else pdp)")
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team (WANDB_ENTITY)")
    parser.add_argument("--offline", type=Path, metavar="FILE", help="write the specification here as JSON")
    arguments = parser.parse_args(argv)

    from pdp.tracking import wandb_views

    if arguments.offline:
        wandb_views.write_specification(arguments.offline, arguments.project, arguments.entity or "entity")
        print(f"written: {arguments.offline}")
        return 0
    if not arguments.entity:
        raise Refusal("--entity must be given: the user or team that the project is of, or set WANDB_ENTITY")
    for address in wandb_views.save(arguments.project, arguments.entity):
        print(address)
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("wandb_dashboard", main))
