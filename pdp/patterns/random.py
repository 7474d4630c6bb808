"""The random (unstructured) pattern: every weight is a unit, and its magnitude is its saliency."""

from __future__ import annotations

from pdp.patterns import pattern


class Pattern(pattern.Pattern):
    """The base class already implements this pattern."""

    name = "random"
