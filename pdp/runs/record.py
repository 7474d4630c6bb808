"""The record: the single JSON file of a finished run from which all tables and figures are made."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

from pdp.errors import Refusal
from pdp.runs.kinds import fits, in_words

RECORD = "record.json"
SCALES = "quantization.safetensors"  # stored beside the weights of a quantized run
TOKENIZER = "tokenizer"  # the folder of a tokenizer that was trained for the run


@dataclass
class Record:
    """What a finished run was and its results; accuracies and shares are fractions, counts are integers."""

    run_id: str
    status: str
    model: str
    pretrained: str
    data: str
    data_fingerprint: str
    task: str
    recipe: dict[str, Any]
    schedule: dict[str, Any]
    metric_name: str
    metric: float  # of the final model: hard, and quantized if asked for; last epoch, test set
    metrics: dict[str, float]
    metric_soft: float  # with the soft mask, in floats
    metric_before_pruning: float
    metric_best: float  # test metric of the epoch at target sparsity with the best validation metric
    epoch_best: int
    method: str
    pattern: str
    allocation: str
    target_unit: str
    target_sparsity: float
    sparsity: float  # zeros / prunable weights
    sparsity_all: float  # zeros / all convolution and linear weights
    params: int
    params_nonzero: int
    extra_parameters: int
    macs: int | None  # None: could not be counted, see `notes`
    macs_sparse: int | None
    macs_attention: int | None
    input_shape: list[int]
    epochs: int
    seed: int
    steps: int
    train_seconds: float
    step_ms_median: float
    mask_ms_median: float  # the pruner's calls between two steps: cuts, but not the masks in forward and backward
    peak_memory_mb: float
    device: str
    world_size: int
    config_hash: str
    git_commit: str | None
    versions: dict[str, str]
    finished_at: str
    method_options: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)  # empty without a teacher
    validation: str = "held out"  # or "test": the test set was also used for validation
    model_source: str = ""  # of the user's own model: the sha256 of its source file
    start: dict[str, Any] = field(default_factory=dict)  # the run that it continued from; empty without one
    notes: list[str] = field(default_factory=list)
    step_best: int | None = None  # the optimizer step of that epoch's best evaluation
    skipped_steps: int = 0  # with recipe.on_nonfinite=skip: steps with a non-finite loss or gradient
    classes: list[str] = field(default_factory=list)  # names of the user's own classes, by number
    method_revision: int = 1  # of the method's behaviour (pdp.methods.revisions)
    least_density: float = 0.0  # least share of its units that each layer keeps
    prunable_share: float | None = None  # share of prunable weights among all parameters of two or more dimensions
    allocation_ends: str = "pruned"  # whether the first and last layer had to stay dense
    macs_all_experts: int | None = None  # `macs` if every token went through all experts; None: there are none
    ran_under: list[dict[str, Any]] = field(default_factory=list)  # sharding, processes, from_step: one for each change
    quantize: str = "none"  # none, int8 or int4w
    metric_hard: float | None = None  # of the hard model in floats; None: not quantized, see `metric`
    quantization: dict[str, Any] = field(default_factory=dict)  # bits, ranges, start, zeros of the integers, ...
    bytes_on_disk: dict[str, int] = field(default_factory=dict)  # of the whole model, by form (pdp.quantize.sizes)
    reading: dict[str, Any] = field(default_factory=dict)  # of texts: a digest of the tokenizer; score: shift, scale

    @property
    def hard(self) -> float:
        """The metric of the hard model in floats."""
        return self.metric if self.metric_hard is None else self.metric_hard

    @property
    def directory(self) -> Path | None:
        """The folder of the run from which this record was read; None if it was not read from one."""
        return self.__dict__.get("_directory")


def write_json(path: Path, values: Any) -> None:
    """Writes JSON atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_record(record: Record, directory: Path) -> Path:
    """Writes `record.json`, the last file of a run."""
    path = directory / RECORD
    write_json(path, dataclasses.asdict(record))
    return path


def check_kinds(values: Any) -> None:
    """Raises `TypeError` for the first value that is not of its field's kind."""
    if not isinstance(values, dict):
        raise TypeError("it holds no values by name")
    hints = _hints()
    for key, value in values.items():
        if key in hints and not fits(hints[key], value):
            said = json.dumps(value)
            raise TypeError(f"{key} is {said[:40]}{'...' * (len(said) > 40)} and not {in_words(hints[key])}")


@lru_cache(maxsize=1)
def _hints() -> dict[str, Any]:
    return get_type_hints(Record)


def _required() -> list[str]:
    return [
        one.name
        for one in dataclasses.fields(Record)
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]


def read_record(directory: Path) -> Record:
    """Reads a run's record; raises `Refusal` if there is none or it cannot be read."""
    path = directory / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        check_kinds(values)
        known = {one.name for one in dataclasses.fields(Record)}
        if lacking := [name for name in _required() if name not in values]:
            raise TypeError(f"it has no {', '.join(lacking[:5])}{', ...' * (len(lacking) > 5)}")
        record = Record(**{key: value for key, value in values.items() if key in known})
        record.__dict__["_directory"] = directory
        return record
    except FileNotFoundError:
        raise Refusal(f"run={directory} has no {RECORD}: it is not a finished run's directory") from None
    except (OSError, ValueError, RecursionError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"run={directory}: {RECORD} cannot be read ({reason}): restore it, or give another run") from None
