"""Training time as one type: "16ep" (epochs), "2000it" (optimizer steps) or "0.16" (a fraction of the run)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pdp.errors import Refusal

_FORM = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ep|it)?\s*")


@dataclass(frozen=True)
class Time:
    """A moment or a length of training; `unit` is "ep", "it" or "run" (value is then a fraction in [0, 1])."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: str | float | int | Time, key: str = "time") -> Time:
        """Reads "16ep", "2000it" or a fraction of the run; raises `Refusal` naming `key` for anything else."""
        if isinstance(text, Time):
            return text
        match = _FORM.fullmatch(str(text))
        allowed = 'epochs ("16ep"), steps ("2000it") or a fraction of the run from 0 to 1 ("0.16")'
        if match is None:
            raise Refusal(f"{key}={text} is not a time: give {allowed}")
        value, unit = float(match[1]), match[2] or "run"
        if unit == "run" and value > 1:
            raise Refusal(f"{key}={text} is not a time: give {allowed}; did you mean {key}={match[1]}ep?")
        if unit == "it" and value != int(value):
            raise Refusal(f"{key}={text} is not a time: steps are whole numbers")
        return cls(value, unit)

    def epochs(self, run_epochs: int, steps_per_epoch: int | None = None) -> int:
        """This time in whole epochs of a run of `run_epochs` epochs, rounded half up."""
        if self.unit == "ep":
            exact = self.value
        elif self.unit == "run":
            exact = self.value * run_epochs
        else:
            exact = self.value / _known(steps_per_epoch, self)
        return math.floor(exact + 0.5)

    def steps(self, run_epochs: int, steps_per_epoch: int | None) -> int:
        """This time in whole optimizer steps, rounded half up."""
        if self.unit == "it":
            return int(self.value)
        epochs = self.value if self.unit == "ep" else self.value * run_epochs
        return math.floor(epochs * _known(steps_per_epoch, self) + 0.5)

    def __str__(self) -> str:
        return f"{self.value:.10g}" + ("" if self.unit == "run" else self.unit)


def _known(steps_per_epoch: int | None, time: Time) -> int:
    if not steps_per_epoch:
        raise Refusal(f"{time} cannot be placed without steps_per_epoch: give it, or give the time in epochs")
    return steps_per_epoch
