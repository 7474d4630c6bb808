"""The options of each pattern; needs no torch, so that a command line can be checked in a moment."""

from __future__ import annotations

from dataclasses import dataclass

from pdp.errors import Refusal

SALIENCIES = ("rms", "l2", "l1")
TARGETS = ("channels", "macs")


@dataclass
class RandomOptions:
    """Any weight by itself."""

    def check(self) -> None:
        """Raises `Refusal` for a value that the pattern cannot work with."""


@dataclass
class NmOptions(RandomOptions):
    """N weights kept of each M consecutive inputs."""

    n: int = 2  # weights kept of each group
    m: int = 4  # consecutive inputs of a group

    def check(self) -> None:
        if not 0 < self.n < self.m:
            raise Refusal(f"prune.n={self.n} of prune.m={self.m}: N of each M are kept, so give 0 < prune.n < prune.m")


@dataclass
class ChannelOptions(RandomOptions):
    """Whole output channels, in attention heads, with all that is coupled to them."""

    saliency: str = "rms"  # root mean square of the channel's weights, l2: their norm, l1: the sum of |w|
    target: str = "channels"  # what sparsity is a share of: channels, or the multiply-adds of the slimmed model (macs)
    prune_stem: bool = False  # whether the first convolution may lose outputs
    relative_budget: bool = True  # layers are compared by saliency over the layer's mean, which fan-in does not move

    round_to: int = 1  # what each coupling keeps is a multiple of this many channels; the total as near as can be

    def check(self) -> None:
        if self.round_to < 1:
            raise Refusal(f"prune.round_to={self.round_to}: give 1 (no rounding), or what to round to, such as 8")
        for key, allowed in (("saliency", SALIENCIES), ("target", TARGETS)):
            if getattr(self, key) not in allowed:
                raise Refusal(f"prune.{key}={getattr(self, key)}: no such choice; known: {', '.join(allowed)}")


PATTERNS: dict[str, type[RandomOptions]] = {"random": RandomOptions, "nm": NmOptions, "channel": ChannelOptions}
