"""The options of each pattern; needs no torch, so that a command line can be checked in a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from pdp.errors import Refusal

SALIENCIES = ("rms", "l2", "l1")
TARGETS = ("channels", "macs")


@dataclass
class RandomOptions:
    """Every weight is a unit of its own."""

    def check(self) -> None:
        """Raises `Refusal` for a value that the pattern cannot work with."""


@dataclass
class NmOptions(RandomOptions):
    """N weights kept of each M consecutive inputs."""

    n: int = 2  # weights kept in each group
    m: int = 4  # weights in a group: consecutive inputs of one output

    def check(self) -> None:
        if not 0 < self.n < self.m:
            raise Refusal(f"prune.n={self.n} of prune.m={self.m}: N of each M are kept, so give 0 < prune.n < prune.m")


@dataclass
class ChannelOptions(RandomOptions):
    """Whole output channels, in attention heads, with all that is coupled to them."""

    # of a channel, over all its weights: rms (root mean square), l2 (Euclidean norm) or l1 (sum of absolute values)
    saliency: str = "rms"
    target: str = "channels"  # what sparsity is a share of: channels, or macs (the multiply-adds of the dense model)
    prune_stem: bool = False  # whether the first convolution may lose output channels
    # whether a global budget compares saliencies divided by their layer's mean, so that a layer's fan-in does not
    # matter
    relative_budget: bool = True

    # number of channels of which every layer keeps a multiple; the total share stays as close to the target as it can
    round_to: int = 1

    def check(self) -> None:
        if self.round_to < 1:
            raise Refusal(f"prune.round_to={self.round_to}: give 1 (no rounding), or what to round to, such as 8")
        for key, allowed in (("saliency", SALIENCIES), ("target", TARGETS)):
            if getattr(self, key) not in allowed:
                raise Refusal(f"prune.{key}={getattr(self, key)}: no such choice; known: {', '.join(allowed)}")


@dataclass
class BlockOptions(RandomOptions):
    """Blocks of rows x columns of the weight matrix (outputs x everything that one output multiplies)."""

    block: list[int] = field(default_factory=lambda: [4, 1])  # rows (outputs) and columns (inputs) of a block
    # of a block, over all its weights: rms (root mean square), l2 (Euclidean norm) or l1 (sum of absolute values)
    saliency: str = "rms"
    # whether a global budget compares saliencies divided by their layer's mean, so that a layer's fan-in does not
    # matter
    relative_budget: bool = True

    def check(self) -> None:
        if isinstance(self.block, tuple | list):
            # NumPy's whole numbers are as good as Python's.
            self.block = [
                int(one) if isinstance(one, Integral) and not isinstance(one, bool) else one for one in self.block
            ]
        sizes = self.block if isinstance(self.block, list) else []
        if len(sizes) != 2 or not all(type(one) is int and one > 0 for one in sizes):
            said = repr(self.block).replace(", ", ",")
            raise Refusal(
                f"prune.block={said}: a block has rows (outputs) and columns (inputs), two whole numbers from 1 up: "
                "give prune.block=[4,1], or [32,32]"
            )
        if self.saliency not in SALIENCIES:
            raise Refusal(f"prune.saliency={self.saliency}: no such choice; known: {', '.join(SALIENCIES)}")


PATTERNS: dict[str, type[RandomOptions]] = {
    "random": RandomOptions,
    "nm": NmOptions,
    "channel": ChannelOptions,
    "block": BlockOptions,
}


def label_of(pattern: str, options: Mapping[str, Any]) -> str:
    """The pattern's name in records, tables and lists of runs: its own, or 2:4, or block-4x1."""
    if pattern == "nm":
        return f"{options['n']}:{options['m']}"
    if pattern == "block":
        return "block-" + "x".join(map(str, options["block"]))
    return pattern


def kind_of(label: str) -> str:
    """The pattern whose label this is."""
    kind = "nm" if ":" in label else label.partition("-")[0]
    return kind if kind in PATTERNS else "random"
