"""PDP with an annealed temperature: PDP's code as a method with its own name, options and schedule."""

from __future__ import annotations

from typing import ClassVar

from pdp.methods import pdp
from pdp.methods.options import PdpAnnealedOptions


class Method(pdp.Method):
    """A cubic ramp in optimizer steps; then kappa falls from a soft to a hard mask over most of the rest of the run."""

    schedule = "cubic"
    unit: ClassVar[str] = "step"
    ramp: ClassVar[str | None] = "0.4"
    options: PdpAnnealedOptions
