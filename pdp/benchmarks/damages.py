"""Kinds of damage to the files of a killed run, for a soak test."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path


def truncated(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Truncates the newest checkpoint."""
    for path in newest:
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flipped(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Flips one bit of the newest checkpoint."""
    for path in newest:
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)


def without_digest(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Deletes the digest of the newest checkpoint."""
    for path in newest:
        path.with_suffix(".sha256").unlink(missing_ok=True)


def gone(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Deletes the newest checkpoint but not its digest."""
    for path in newest:
        path.unlink()


def cut_histories(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Cuts the histories off in the middle of a line."""
    for path in (run / "history.jsonl", run / "steps.jsonl"):
        if path.is_file() and path.stat().st_size:
            path.write_bytes(path.read_bytes()[: -chance.randrange(1, path.stat().st_size + 1)])


def rubbish(run: Path, newest: Sequence[Path], chance: random.Random) -> None:
    """Writes files with unreadable content, among them the configuration."""
    (run / "config.yaml").write_bytes(chance.randbytes(50))
    (run / ".holder").write_bytes(chance.randbytes(50))
    (run / "checkpoint").mkdir(exist_ok=True)
    (run / "checkpoint" / ".step-000000099.pt.1").write_bytes(chance.randbytes(50))


DAMAGES = (truncated, flipped, without_digest, gone, cut_histories, rubbish)
