"""Many small layers in one forward of the whole model: all of their effective weights are computed at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdp.kernels import cpu as host_kernels
from pdp.layers import Layer, Member

_SMALL = 400_000  # mean weights per layer; above this, fetching effective weights again costs more than separate calls


class Forward:
    """A forward of the whole model in which `layers` are masked at these temperatures, one per layer or one for all."""

    def __init__(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float):
        self.made: dict[int, tuple[Tensor, int, int, tuple[float, float], list[Tensor]]] = {}
        # Without gradients an effective weight is freed after its layer; keeping all of them would need more memory.
        if len(layers) < 2 or not layers[0].weight.is_cpu or not torch.is_grad_enabled():
            return
        weights = [layer.weight for layer in layers]
        if sum(weight.numel() for weight in weights) > _SMALL * len(weights):
            return
        cuts = [layer.state["cut"] for layer in layers]
        if not all(map(host_kernels.usable, weights)) or any(cut.numel() > 1 or not cut.is_cpu for cut in cuts):
            return
        taus = temperatures if isinstance(temperatures, Sequence) else [temperatures] * len(weights)
        for weight, numbers, effective in host_kernels.found().effective(weights, cuts, taus):  # type: ignore[union-attr]
            self.made[id(weight)] = (weight, weight._version, weight.data_ptr(), numbers, [effective])

    def effective(self, member: Member, weight: Tensor) -> Tensor | None:
        """The effective weight for `weight`, handed out once; None if it must still be computed."""
        held = self.made.pop(id(weight), None)
        # A model may change its weights during its forward.
        if held is None or weight._version != held[1] or weight.data_ptr() != held[2]:
            return None
        return host_kernels.found().differentiable(weight, held[3], held[4])  # type: ignore[union-attr]
