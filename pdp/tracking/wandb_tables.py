"""Sends a sweep's tables as one W&B artifact, with a new version each time they are made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pdp.errors import Refusal
from pdp.tracking.tracker import reason_of
from pdp.tracking.wandb_tracker import artifact_of, finds_key, quiet, staging_in

TIMEOUT = 30.0  # seconds


def send_tables(sweep: str, files: Sequence[Path], folder: Path, run: Path | None) -> str:
    """Sends the files to the project of `run`, or stores them offline in `folder`/wandb for wandb_sync.py.

    Returns what it did in words, also for a failure.
    """
    import wandb

    project, entity = _place_of(run)
    told: list[str] = []
    modes = ["online", "offline"] if finds_key(folder, told.append) else ["offline"]
    for mode in modes:
        try:
            with staging_in(folder):
                sender = wandb.init(
                    dir=str(folder),
                    mode=mode,  # type: ignore[arg-type]
                    project=project or os.environ.get("WANDB_PROJECT") or "pdp",
                    entity=entity,
                    job_type="tables",
                    name=f"tables of {sweep}"[:128],
                    tags=["tables"],
                    settings=quiet(TIMEOUT),
                )
            # Copied, because the next call overwrites them.
            sender.log_artifact(artifact_of(f"tables-{sweep}", "tables", files, copied=True))
            sender.finish()
            return " ".join([*told, f"W&B: the tables were sent {mode}"])
        except Exception as error:  # the service may raise anything; the tables are on the disk
            told.append(f"W&B: the tables could not be sent {mode} ({reason_of(error)})")
    return " ".join(told)


def _place_of(run: Path | None) -> tuple[str | None, str | None]:
    """The project and entity in the run's configuration."""
    from pdp.config.stored import read_config

    if run is None:
        return None, None
    try:
        tracker = read_config(run).tracker
    except (OSError, Refusal):
        return None, None
    return getattr(tracker, "project", None), getattr(tracker, "entity", None)
