"""The random (unstructured) pattern: every weight is a unit, its magnitude the saliency."""

from __future__ import annotations

from pdp.patterns import pattern


class Pattern(pattern.Pattern):
    """Exactly what the base class says."""

    name = "random"
