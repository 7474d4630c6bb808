"""The options of each pattern; needs no torch, so that a command line can be checked in a moment."""

from __future__ import annotations

from dataclasses import dataclass

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


PATTERNS: dict[str, type[RandomOptions]] = {"random": RandomOptions, "nm": NmOptions, "channel": ChannelOptions}
