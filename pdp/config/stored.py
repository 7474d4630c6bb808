"""A run's config.yaml: a whole configuration as text, and back."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import OmegaConf

from pdp.config.schema import DATA_SCHEMAS, DISTILL, PRUNE, TRACKERS, Config
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS
from pdp.quantize.options import QUANTIZE
from pdp.wording import one_line


def to_yaml(config: Config) -> str:
    """The whole configuration as the text of a run directory's config.yaml."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(text: str) -> Config:
    """Reads what `to_yaml` wrote; raises `Refusal` for anything else."""
    try:
        values: Any = OmegaConf.create(text)
        if values.method.get("fused") is False:  # an option that runs had for a while; left at that, it changed nothing
            del values.method["fused"]
        if values.data.get("validation_files") == ["valid*.*"]:  # once data=text's own; null says the same
            values.data.validation_files = None
        schema = OmegaConf.structured(Config)
        schema.data = DATA_SCHEMAS[values.model.task]
        schema.method = OPTIONS[values.method.name]
        schema.prune = PRUNE[values.prune.pattern]
        schema.quantize = QUANTIZE[values.get("quantize", {}).get("name", "none")]  # earlier runs have no such group
        schema.distill = DISTILL[values.distill.name]
        schema.tracker = TRACKERS[values.tracker.name]
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(schema, values)))
    except Exception as error:  # whatever a damaged file holds
        raise Refusal(f"not a run's config.yaml: {one_line(error)}") from error
