"""Patterns: what one prunable unit of a weight is, and how a mask over units becomes a mask over the weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from pdp.errors import Refusal


class Pattern:
    """Reads one saliency for each unit off a weight, and spreads a mask over units back over the weight."""

    name: ClassVar[str]

    def saliency(self, weight: Tensor) -> Tensor:
        """One non-negative number per unit, differentiable in `weight`."""
        raise NotImplementedError

    def units(self, weight: Tensor) -> int:
        """How many units `weight` has."""
        raise NotImplementedError

    def spread(self, unit_mask: Tensor, weight: Tensor) -> Tensor:
        """A mask or cut over units, made to broadcast against `weight`."""
        raise NotImplementedError

    def refuses(self, weight: Tensor) -> str | None:
        """Why a layer of this weight stays dense; None where the pattern applies."""
        return None

    @property
    def label(self) -> str:
        """How records and tables name the pattern."""
        return self.name


class RandomPattern(Pattern):
    """Every weight is a unit of its own; its saliency is its magnitude."""

    name = "random"

    def saliency(self, weight: Tensor) -> Tensor:
        return weight.abs()

    def units(self, weight: Tensor) -> int:
        return weight.numel()

    def spread(self, unit_mask: Tensor, weight: Tensor) -> Tensor:
        return unit_mask


PATTERNS: dict[str, type[Pattern]] = {"random": RandomPattern}


def make_pattern(pattern: str | Pattern, **options: object) -> Pattern:
    """The pattern of that name; raises `Refusal` for an unknown one."""
    if isinstance(pattern, Pattern):
        return pattern
    if pattern not in PATTERNS:
        raise Refusal(f"pattern={pattern} is unknown: choose one of {', '.join(PATTERNS)} (prune=)")
    return PATTERNS[pattern](**options)
