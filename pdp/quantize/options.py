"""The options of each way to quantize; needs no torch, so that a command line can be checked in a moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdp.errors import Refusal
from pdp.keywords import check_names, option_names, refuse_beside
from pdp.schedule.time import Time

RANGES = ("observed", "learned")


@dataclass
class QuantizeOptions:
    """Nothing is quantized."""

    name: str = "none"  # none, int8 or int4w

    @property
    def weight_bits(self) -> int:
        """Bits of a weight; 32 where it stays a float."""
        return 32

    @property
    def activation_bits(self) -> int:
        """Bits of an activation; 32 where it stays a float."""
        return 32

    def check(self) -> None:
        """Raises `Refusal` for a value that nothing can be quantized with."""


@dataclass
class Int4wOptions(QuantizeOptions):
    """Weights in 4 bits, symmetric, with one scale per output channel; activations stay in floating point."""

    name: str = "int4w"
    start: str = "0.7"  # a time after which the model computes with quantized numbers
    ranges: str = "observed"  # observed: a range is as wide as the numbers in it; learned: the scales are trained (LSQ)
    exclude: list[str] = field(default_factory=list)  # fnmatch patterns of names of modules that stay in floating point

    @property
    def weight_bits(self) -> int:
        return 4

    def check(self) -> None:
        if self.ranges not in RANGES:
            raise Refusal(f"quantize.ranges={self.ranges}: no such choice; known: {', '.join(RANGES)}")
        if isinstance(self.exclude, str):
            raise Refusal(f"quantize.exclude={self.exclude!r} is no list of names or patterns: give them in a list")
        time = Time.parse(self.start, "quantize.start")
        if time.unit == "run" and time.value >= 1:
            raise Refusal(
                f"quantize.start={self.start} leaves nothing of the run to train with quantized numbers: give a time "
                "before the run's end, such as quantize.start=0.7"
            )


@dataclass
class Int8Options(Int4wOptions):
    """Weights in 8 bits, symmetric, with one scale per output channel; activations in 8 bits, with one per tensor."""

    name: str = "int8"

    @property
    def weight_bits(self) -> int:
        return 8

    @property
    def activation_bits(self) -> int:
        return 8


QUANTIZE: dict[str, type[QuantizeOptions]] = {"none": QuantizeOptions, "int8": Int8Options, "int4w": Int4wOptions}


def make_options(quantize: str | QuantizeOptions | None, **values: object) -> QuantizeOptions:
    """The options of that name; raises `Refusal` for an unknown one, or for values that do not go."""
    if isinstance(quantize, QuantizeOptions):
        options = quantize
        refuse_beside(quantize, values)
    else:
        name = quantize or "none"
        if name not in QUANTIZE:
            raise Refusal(f"quantize={name}: no such choice; known: {', '.join(QUANTIZE)}")
        check_names(f"quantize={name}", values, option_names(QUANTIZE[name]))
        options = QUANTIZE[name](**values)  # type: ignore[arg-type]
    options.check()
    return options
