"""The channels that each layer loses where the target is a share of multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.schedule.allocation import allocate


def mac_budget(
    layers: Sequence[Layer],
    allocation: str,
    share: float | None,
    saliency: Callable[[Layer], Tensor],
    slim_macs: Callable[[Sequence[int]], float],
    dense: int,
) -> list[int]:
    """The budget, in pruned units per layer, whose slim model has multiply-adds closest to the target.

    `share` of the `dense` model's multiply-adds shall go; `slim_macs` gives those that a budget leaves. Raises
    `Refusal` if so many cannot go while each layer keeps a channel.
    """
    if share is None or not 0 <= share < 1:
        raise Refusal(f"sparsity={share} must lie in [0, 1): with prune.target=macs the share of MACs to remove")
    values = {layer.name: saliency(layer) for layer in layers}
    units = sum(layer.units for layer in layers)
    low, high = 0, units - len(layers)

    def counts(pruned: int) -> list[int]:
        return allocate(allocation, layers, pruned / units, lambda layer: values[layer.name], None)

    reach = 1 - slim_macs(counts(high)) / dense
    if reach < share:
        raise Refusal(
            f"sparsity={share} of the MACs cannot be reached: at most {reach:.3f} can go while each layer keeps a "
            "channel; lower sparsity=, or give prune.prune_stem=true"
        )
    while low < high:
        middle = (low + high) // 2
        if slim_macs(counts(middle)) > (1 - share) * dense:
            low = middle + 1
        else:
            high = middle
    # Between the last budget above the target and the first one below it, one layer at a time goes to the lower
    # one, because a uniform budget changes all layers at once.
    above, below = counts(max(0, low - 1)), counts(low)
    mixed = [below[:index] + above[index:] for index in range(len(layers) + 1)]
    return min(mixed, key=lambda budget: abs(slim_macs(budget) - (1 - share) * dense))
