"""How many units of each layer are pruned at the target."""

from __future__ import annotations

from collections.abc import Sequence

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods.method import Method
from pdp.patterns.pattern import Pattern, Wanted
from pdp.pruner.parts import Parts
from pdp.schedule.allocation import least_units


def allocation_of(pattern: Pattern, method: Method, asked: str | None) -> str:
    """The allocation that is used where `asked` is given, None for the method's own."""
    if asked == "file":
        return asked
    if method.locked:
        return "held"
    if pattern.implied_share is not None:
        return "implied"
    return asked or method.allocation


def keep_least(layers: Sequence[Layer], least_density: float, ends: str) -> None:
    """Sets the least number of units that each layer keeps; the two options are `Pruner`'s."""
    for layer, least in zip(layers, least_units(layers, least_density, ends), strict=True):
        layer.least = least


def check_target(pruner: Parts) -> None:
    """Raises `Refusal`, before any training, for a target that is missing or cannot be met."""
    if not pruner.method.prunes:
        return
    if pruner.allocation == "file" and not pruner.method.takes_budget:
        raise Refusal(
            f"allocation=file has no meaning for method={pruner.method.options.name}, which finds each layer's "
            "share itself: drop it"
        )
    if pruner.target is not None or pruner.allocation == "file":
        budget_of(pruner, pruner.target)
    elif pruner.method.needs_target:
        raise Refusal("sparsity is missing: give sparsity=<a share from 0 to 1>")


def budget_of(pruner: Parts, share: float | None, allocation: str | None = None) -> list[int]:
    """The pruned units of each layer at `share`, from the present weights; `allocation` None is the pruner's."""
    saliency, comparable = pruner.method.saliency, pruner.method.comparable
    wanted = Wanted(allocation or pruner.allocation, share, saliency, pruner.allocation_path, comparable)
    return pruner.pattern.budget(pruner.layers, wanted)


def fix_budget(pruner: Parts) -> None:
    """Fixes every layer's final share from the present weights (PDP: one global cut at epoch s)."""
    if pruner.target is None and pruner.allocation != "file":
        return
    for layer, final in zip(pruner.layers, budget_of(pruner, pruner.target), strict=True):
        layer.final = final
