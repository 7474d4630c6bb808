"""PDP with an annealed temperature: PDP's code, with a method's name, options and schedule of its own."""

from __future__ import annotations

from typing import ClassVar

from pdp.methods import pdp
from pdp.methods.options import PdpAnnealedOptions


class Method(pdp.Method):
    """A cubic ramp in optimizer steps, then kappa falls from soft to hard over most of what is left of the run."""

    schedule = "cubic"
    unit: ClassVar[str] = "step"
    ramp: ClassVar[str | None] = "0.4"
    options: PdpAnnealedOptions
