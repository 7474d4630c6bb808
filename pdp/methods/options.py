"""The options of each pruning method; needs no torch, so that a command line can be checked in a moment."""

from __future__ import annotations

from dataclasses import dataclass

from pdp.errors import Refusal

PAPERS_TEMPERATURE = 1e-4


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
    """PDP (arXiv 2305.11203): tau of the soft mask, the paper's 1e-4 (as third parties quote it).

    Relative mode: tau = kappa * t^2 for each layer, so that the mask does not depend on the scale of the weights. Left
    at auto, single weights (random, N:M) have the paper's absolute temperature. Channels have a relative one: the
    mean square of a whole filter hardly differs between channels, and 1e-4 left every mask of a ResNet-18 soft.
    """

    name: str = "pdp"
    temperature: float = PAPERS_TEMPERATURE
    temperature_mode: str = "auto"  # absolute: temperature holds; relative: kappa does; auto: the pattern's own
    kappa: float | None = None  # null: the pattern's own, 0.02 for single weights, 0.002 for channels


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
    if isinstance(options, PdpOptions):
        if options.temperature_mode not in ("auto", "absolute", "relative"):
            raise Refusal(f"method.temperature_mode={options.temperature_mode}: give auto, absolute or relative")
        if options.kappa is not None and not 0 < options.kappa < float("inf"):
            raise Refusal(f"method.kappa={options.kappa} must be a finite number above 0, such as 0.02")
    if isinstance(options, GmpOptions) and options.update_every is not None and options.update_every < 1:
        raise Refusal(f"method.update_every={options.update_every} must be at least 1 step, or null for once an epoch")
