"""Sends runs that were tracked offline to W&B, each once, including those that were resumed.

    python scripts/wandb_sync.py                       all below results/runs
    python scripts/wandb_sync.py results/runs/<run>    these alone
    python scripts/wandb_sync.py --dry-run             says what would be sent

A resumed run left a folder for each start; they are sent in order and form one run. What was sent is marked and not
sent again; a run that is still training is left for later. Exit codes: 0; 2 refused; 3 W&B did not accept something.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded
from pdp.tracking import wandb_offline


def main(argv: Sequence[str] | None = None) -> int:
    """Finds the folders and sends them."""
    parser = Parser("wandb_sync.py", __doc__)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("results/runs")], help="(results/runs)")
    parser.add_argument("--project", help="another project than the run's own")
    parser.add_argument("--entity", help="another user or team than the key's own")
    parser.add_argument("--dry-run", action="store_true", help="send nothing")
    arguments = parser.parse_args(argv)
    for folder in arguments.folders:
        if not folder.is_dir():
            raise Refusal(f"{folder} is no folder: give one that holds runs")
    new, sent, growing = wandb_offline.unsent(arguments.folders)
    if arguments.dry_run:
        for folder in new:
            print(f"would be sent: {folder}")
    elif new:
        chosen = {"project": arguments.project, "entity": arguments.entity}
        options = [f"--{name}={value}" for name, value in chosen.items() if value]
        wandb_offline.send(new, lambda line: print(line, flush=True), options)
    verb = "to send" if arguments.dry_run else "sent now"
    print(f"{len(new)} {verb}, {len(sent)} sent before, {len(growing)} of runs that still run")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("wandb_sync", main))
