"""A run's config.yaml: writes a whole configuration as text and reads it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from pdp.config.check_values import check_values
from pdp.config.data_schema import DATA_SCHEMAS
from pdp.config.schema import DISTILL, PRUNE, TRACKERS, Config
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS
from pdp.quantize.options import QUANTIZE
from pdp.wording import one_line

CONFIG = "config.yaml"


def to_yaml(config: Config) -> str:
    """The whole configuration as the text of config.yaml in a run's directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_config(run: Path) -> Config:
    """The configuration in a run's directory; raises `Refusal` where there is none, or none that can be used."""
    path = run / CONFIG
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"run={run} has no {CONFIG}: it is not a run's directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read ({one_line(error)}): restore it, or give another run") from None
    except Refusal as refusal:
        raise Refusal(f"{path}: {refusal}") from None


def from_yaml(text: str) -> Config:
    """The configuration that `to_yaml` wrote; raises `Refusal` for anything else, and for values out of range."""
    try:
        values: Any = OmegaConf.create(text)
        if values.method.get("fused") is False:  # an option of earlier versions, which had no effect when false
            del values.method["fused"]
        if values.data.get("validation_files") == ["valid*.*"]:  # earlier the default of data=text; null means the same
            values.data.validation_files = None
        schema = OmegaConf.structured(Config)
        schema.data = DATA_SCHEMAS[values.model.task]
        schema.method = OPTIONS[values.method.name]
        schema.prune = PRUNE[values.prune.pattern]
        schema.quantize = QUANTIZE[values.get("quantize", {}).get("name", "none")]  # earlier runs have no such group
        schema.distill = DISTILL[values.distill.name]
        schema.tracker = TRACKERS[values.tracker.name]
        config = cast(Config, OmegaConf.to_object(OmegaConf.merge(schema, values)))
    except Exception as error:  # a damaged file may cause any error
        raise Refusal(f"not a run's config.yaml: {one_line(error)}") from error
    # What only a new run must obey is not asked: rules that came later would shut out older runs.
    check_values(config)
    return config
