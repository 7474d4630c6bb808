"""A run's identity: a hash of what decides its result; a new option with a default does not change it."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pdp.config.check import normalise
from pdp.config.check_prune import implied_sparsity, is_dense
from pdp.config.data_schema import data_label
from pdp.config.distill import HUB
from pdp.config.schema import Config, DistillConfig, StartConfig, TeacherConfig
from pdp.config.source import source_digest
from pdp.errors import Refusal
from pdp.methods.options import DenseOptions
from pdp.methods.revisions import conditions, revision_of
from pdp.patterns.options import label_of
from pdp.quantize.options import QuantizeOptions
from pdp.schedule.time import Time

LONGEST_NAME = 255  # bytes of a file name, in all common file systems

# What does not affect the result: a dotted key or a whole group.
EXCLUDED = (
    "seed",
    "resume",
    "rerun",
    "dry_run",
    "tracker",
    "output_dir",
    "device",
    "provenance",
    "recipe.name",
    "recipe.checkpoint_minutes",
    "recipe.history_steps",
    "recipe.sharding",
    "data.workers",
    "data.root",
    "data.unasked",
    "distill.cache",
    # The fingerprint contains the tokens, whatever files they came from.
    "data.tokenizer",
    "data.train",
    "data.validation_file",
    "data.test",
    "data.text",
    "data.label",
    "data.score",
    "data.train_files",
    "data.validation_files",
    "data.test_files",
    "data.subset",
    "data.column",
    "data.train_split",
    "data.validation_split",
    "data.test_split",
)
_TIMES = ("recipe.lr_warmup", "recipe.evaluate_every", "schedule.warmup", "schedule.ramp", "quantize.start")
_LISTS_OF_TIMES = ("schedule.phases",)


def run_directory(config: Config, data_fingerprint: str) -> Path:
    """`<output_dir>/<model>-<data>-<method>-<pattern>-<sparsity>-<hash8>/seed<k>`; raises `Refusal` like the hash.

    If numbers are quantized, -int8 or -int4w comes before the hash.
    """
    names = [_slug(part) for part in (config.model.name, data_label(config.data), config.method.name)]
    quantized = [] if config.quantize.name == "none" else [config.quantize.name]
    ending = [_pattern_slug(config), _slug(_sparsity_slug(config)), *quantized]
    ending.append(config_hash(config, data_fingerprint)[:8])
    slug = "-".join([*names, *ending])
    if len(slug.encode()) > LONGEST_NAME:
        slug = "-".join([*(_cut(name, LONGEST_NAME // 4) for name in names), *ending])
    return Path(config.output_dir) / slug / f"seed{config.seed}"


def config_hash(config: Config, data_fingerprint: str) -> str:
    """16 hex digits from the values that differ from defaults, with data and files by their content.

    Raises `Refusal` if a file that counts cannot be read.
    """
    values = changed_values(config)
    values["data.fingerprint"] = data_fingerprint
    if config.model.pretrained.lower() not in ("false", "true"):
        values["model.pretrained"] = _weights_content(Path(config.model.pretrained))
    elif config.model.library == "transformers" and Path(config.model.name).is_dir():
        values["model.name"] = _weights_content(Path(config.model.name))
    if config.model.library == "import":
        values["model.source"] = f"sha256:{source_digest(config.model.name)}"
    if config.start.run is not None:
        values["start.run"] = _start_content(Path(config.start.run))
    if config.allocation.path is not None:
        values["allocation.path"] = _budget_content(Path(config.allocation.path))
    if isinstance(config.distill, TeacherConfig):
        values["distill.teacher"] = _teacher_content(config, config.distill.teacher, data_fingerprint)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def dense_cell(config: Config) -> Config:
    """The dense run of the same cell and seed: same model, data and recipe, unpruned, in floats, without teacher."""
    dense = copy.deepcopy(config)
    dense.method, dense.distill, dense.start = DenseOptions(), DistillConfig(), StartConfig()
    dense.quantize = QuantizeOptions()
    normalise(dense)
    return dense


def changed_values(config: Config) -> dict[str, Any]:
    """The values that affect the result and differ from defaults, by dotted key; always the method's name."""
    values: dict[str, Any] = {}
    _collect(config, "", values)
    values["method.name"] = config.method.name
    if config.quantize.name != "none":
        values["quantize.name"] = config.quantize.name
    if (revision := method_revision(config)) > 1:
        values["method.revision"] = revision
    return values


def method_revision(config: Config) -> int:
    """The revision of the method in this run."""
    allocation, recipe, pattern = config.allocation, config.recipe, config.prune.pattern
    of_model = (config.model.name, pattern, recipe.channels_last)
    holding = conditions(allocation.least_density, allocation.ends, recipe.clip, *of_model)
    return revision_of(config.method.name, pattern, holding)


def _collect(node: Any, path: str, values: dict[str, Any]) -> None:
    for field in dataclasses.fields(node):
        key, value = path + field.name, getattr(node, field.name)
        if key in EXCLUDED or (key == "recipe.compile" and value == "graphs"):
            continue  # graphs run the same kernels on the same numbers
        if dataclasses.is_dataclass(value):
            _collect(value, f"{key}.", values)
            continue
        canonical = _canonical(value, key)
        if canonical != _canonical(_default(field), key):
            values[key] = canonical


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "???" if field.default is dataclasses.MISSING else field.default


def _canonical(value: Any, key: str) -> Any:
    """The value in a unique spelling: 1.0 as 1, a time by number and unit, a set of patterns sorted."""
    if key in _LISTS_OF_TIMES:
        return [_canonical(one, _TIMES[0]) for one in value]
    if key in _TIMES and value not in (None, "auto", "???"):
        time = Time.parse(value, key)
        return [_canonical(time.value, ""), time.unit]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {str(name): _canonical(one, "") for name, one in value.items()}
    if isinstance(value, list | tuple):
        items = [_canonical(one, "") for one in value]
        return sorted(set(items)) if key in ("prune.exclude", "quantize.exclude") else items
    return value


def _pattern_slug(config: Config) -> str:
    prune = config.prune
    return label_of(prune.pattern, vars(prune)).replace(":", "-")


def _sparsity_slug(config: Config) -> str:
    if is_dense(config):
        return "0"
    if (implied := implied_sparsity(config)) is not None:
        return f"{implied:.10g}"
    if config.sparsity is None:
        return "file" if config.allocation.name == "file" else "free"
    return f"{_canonical(float(config.sparsity), '')!r}"


def _cut(name: str, longest: int) -> str:
    """The name, truncated to at most `longest` bytes; the hash is what distinguishes runs."""
    return name.encode()[:longest].decode(errors="ignore")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "_", text).strip("._") or "unnamed"


def _budget_content(path: Path) -> str:
    """Another run by its hash and seed; a CSV, or a run without a readable record, by the bytes of its table."""
    if not path.is_dir():
        return f"sha256:{_sha256(path, 'allocation.path')}"
    return _run_content(path) or f"sha256:{_sha256(path / 'layers.csv', 'allocation.path')}"


def _start_content(path: Path) -> str:
    """The run to continue from, by its hash and seed."""
    content = _run_content(path)
    if content is None:
        raise Refusal(f"from={path}: its record cannot be read, which says what run it is: give another run")
    return content


def _teacher_content(config: Config, teacher: str | None, data_fingerprint: str) -> str:
    """A run by its hash and seed, weights by their bytes; the cell's dense run by its hash, its seed being the run's.

    So the seeds of a cell with such a teacher are in one directory, as for any other cell.
    """
    if teacher is None:
        return f"dense:{config_hash(dense_cell(config), data_fingerprint)}"
    if teacher == HUB:
        return HUB
    path = Path(teacher)
    if not path.is_dir():
        return f"sha256:{_sha256(path, 'distill.teacher')}"
    if (content := _run_content(path)) is not None:
        return content
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    listing = "".join(f"{file.name} {_sha256(file, 'distill.teacher')}\n" for file in files)
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def _run_content(path: Path) -> str | None:
    """A run's hash and seed; None if it has no readable record."""
    try:
        record = json.loads((path / "record.json").read_text(encoding="utf-8"))
        return f"run:{record['config_hash']}:seed{int(record['seed'])}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _weights_content(path: Path) -> str:
    """A file by its bytes, a checkpoint's folder by the bytes of its configuration and weights."""
    if not path.is_dir():
        return f"sha256:{_sha256(path, 'model.pretrained')}"
    files = sorted({*path.glob("config.json"), *path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")})
    digests = [f"{file.name}:{_sha256(file, 'model.pretrained')}" for file in files]
    return f"folder:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


def pretrained_label(config: Config) -> str:
    """The name of the initial weights in records: false, true, or a name and content, independent of their path."""
    if config.start.run is not None:
        _, digest, seed = _start_content(Path(config.start.run)).split(":")
        return f"run {digest[:8]}-{seed.removeprefix('seed')}"
    pretrained = config.model.pretrained
    if pretrained.lower() in ("false", "true"):
        return pretrained
    kind, _, digest = _weights_content(Path(pretrained)).partition(":")
    return f"{Path(pretrained).name} ({kind} {digest[:16]})"


def _sha256(path: Path, key: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refusal(f"{key}: {path} cannot be read ({error.strerror}): give {key}=<a file that can>") from error
