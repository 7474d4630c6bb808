"""The dense run that a run is held against: same model, data, recipe and seed, nothing pruned. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from pdp.config.identity import config_hash, dense_cell, run_directory
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.runs.record import RECORD, read_record


def dense_run(config: Config, data_fingerprint: str | None) -> Path | None:
    """The finished dense run of the same cell and seed with its weights, or None.

    Without a fingerprint, as in a dry run, the newest run of the cell is taken, whatever its data was.
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
