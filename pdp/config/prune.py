"""The configuration of each pattern: what one prunable unit is, and which layers stay dense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from pdp.patterns.options import BlockOptions, ChannelOptions, NmOptions


@dataclass
class PruneConfig:
    """What one prunable unit is, and which layers stay dense."""

    pattern: str = MISSING  # random, nm, channel, block or none
    exclude: list[str] = field(default_factory=list)  # fnmatch patterns of names of modules that stay dense


@dataclass
class NmPruneConfig(PruneConfig, NmOptions):
    """N weights kept of each M consecutive inputs."""


@dataclass
class ChannelPruneConfig(PruneConfig, ChannelOptions):
    """Whole output channels, in attention heads, with all that is coupled to them."""


@dataclass
class BlockPruneConfig(PruneConfig, BlockOptions):
    """Blocks of rows x columns of the weight matrix (outputs x everything that one output multiplies)."""


PRUNE: dict[str, type[PruneConfig]] = {
    "none": PruneConfig,
    "random": PruneConfig,
    "nm": NmPruneConfig,
    "channel": ChannelPruneConfig,
    "block": BlockPruneConfig,
}


def pattern_options(prune: PruneConfig) -> dict[str, Any]:
    """What the pattern itself is told."""
    return {key: value for key, value in vars(prune).items() if key not in ("pattern", "exclude")}
