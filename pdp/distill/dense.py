"""Finds the dense run that a run is compared with: same model, data, recipe and seed, unpruned. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pdp.config.identity import config_hash, dense_cell, run_directory
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.runs.record import RECORD, read_record


def dense_run(config: Config, data_fingerprint: str | None) -> Path | None:
    """The folder of the finished dense run of the same cell and seed, if it has its weights; else None.

    Without a fingerprint, as in a dry run, it is the newest such run, whatever its data was.
    """
    dense = dense_cell(config)
    place = run_directory(dense, data_fingerprint or "")
    pattern = f"{place.parent.name.rpartition('-')[0]}-*/{place.name}/{RECORD}"
    found = []
    for path in Path(config.output_dir).glob(pattern):
        try:
            record = read_record(path.parent)
        except Refusal:
            continue
        of = data_fingerprint or record.data_fingerprint
        if record.config_hash == config_hash(dense, of) and (path.parent / "model.safetensors").is_file():
            found.append((record.finished_at, path.parent))
    return max(found)[1] if found else None
