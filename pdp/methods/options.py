"""The options of each pruning method; needs no torch, so that a command line can be checked in a moment."""

from __future__ import annotations

from dataclasses import dataclass

from pdp.errors import Refusal


@dataclass
class MethodOptions:
    """What every method has: its name."""

    name: str = "???"


@dataclass
class DenseOptions(MethodOptions):
    """No pruning: the baseline every row is compared with."""

    name: str = "dense"


@dataclass
class PdpOptions(MethodOptions):
    """PDP (arXiv 2305.11203): tau of the soft mask, the paper's 1e-4 (as third parties quote it)."""

    name: str = "pdp"
    temperature: float = 1e-4


@dataclass
class GmpOptions(MethodOptions):
    """Gradual magnitude pruning (Zhu and Gupta 2017): steps between two mask updates; null is once an epoch."""

    name: str = "gmp"
    update_every: int | None = None


OPTIONS: dict[str, type[MethodOptions]] = {
    "dense": DenseOptions,
    "pdp": PdpOptions,
    "gmp": GmpOptions,
}


def check_options(options: MethodOptions) -> None:
    """Raises `Refusal` for a value that the method cannot work with."""
    if isinstance(options, PdpOptions) and not 0 < options.temperature < float("inf"):
        raise Refusal(f"method.temperature={options.temperature} must be a finite number above 0 (the paper's is 1e-4)")
    if isinstance(options, GmpOptions) and options.update_every is not None and options.update_every < 1:
        raise Refusal(f"method.update_every={options.update_every} must be at least 1 step, or null for once an epoch")
