"""Methods with a hard mask, W * B, that stays the same from one mask update to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pdp.layers import Layer, Member
from pdp.methods import method
from pdp.sharded import own_part, part_of


class MaskedMethod(method.Method):
    """W * B, with a new B when the schedule's fraction of the target has changed.

    A masked weight gets no gradient from the task, and its momentum is cleared, so that only its own stored value can
    bring it back. With `zeroes` the stored value is set to zero too, as in methods that multiply the weights themselves
    by the mask.
    """

    zeroes = False

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.masked: dict[str, int] = {}  # how many units of each layer the present mask prunes
        self.fraction = 0.0  # the fraction at which the masks were made
        self.stale = False  # the shares are set but the masks not yet made

    @property
    def moves(self) -> bool:
        """Whether every update makes one cut over all layers, rather than using a budget fixed at the first update."""
        return False

    def due(self, moment: method.Moment) -> bool:
        """Whether new masks are made at `moment`."""
        return moment.fraction != self.fraction

    def share_out(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        if not self.due(moment):
            return
        self.fraction, self.stale = moment.fraction, True
        super().share_out(layers, moment)
        if self.moves and moment.fraction and self.plan.target is not None:
            self.set_shares(layers, moment.fraction * self.plan.target)

    def update(self, layers: Sequence[Layer], moment: method.Moment) -> None:
        # Layers whose count stays the same need a new mask too, because their weights have changed since the last one.
        stale, self.stale = self.stale, False
        for layer in layers:
            if not layer.active:
                self.masked.pop(layer.name, None)
            elif stale or layer.pruned != self.masked.get(layer.name):
                self.make_mask(layer)

    def make_mask(self, layer: Layer) -> None:
        """Makes a new mask of the layer from its saliency, for the number of units to prune now."""
        self.set_mask(layer, self.pattern.keep(layer, self.saliency(layer)))

    def set_mask(self, layer: Layer, keep: Tensor) -> None:
        """Sets the layer's mask to `keep`."""
        self.masked[layer.name] = layer.pruned
        self.replace_state(layer, "keep", keep)
        for member in layer.members:
            tensor = member.stored
            mask = part_of(self.pattern.spread(layer.state["keep"], layer, member, tensor), tensor)
            self.clear_momentum(member.sites[0].parameter_held, mask, member.sites[0].index)
            if self.clears(member):
                with torch.no_grad():
                    own_part(tensor).mul_(mask)

    def clears(self, member: Member) -> bool:
        """Whether a new mask sets the stored values of this tensor to zero."""
        return self.zeroes

    def clear_momentum(self, tensor: Tensor, keep: Tensor, index: int | None = None) -> None:
        """Sets the optimizer's running averages of `tensor`, or of one matrix in it, to zero where `keep` is False.

        Of a sharded tensor `keep` is that of this process's part.
        """
        state = self.optimizer.state.get(tensor, {}) if self.optimizer else {}
        for value in state.values():
            if torch.is_tensor(value) and value.shape == tensor.shape:
                (own_part(value) if index is None else value[index]).mul_(keep)

    def effective_weight(self, layer: Layer, weight: Tensor, member: Member | None = None) -> Tensor:
        return weight * self.pattern.spread(layer.state["keep"], layer, member or layer.members[0], weight)

    def keep(self, layer: Layer) -> Tensor:
        return layer.state["keep"] if "keep" in layer.state else super().keep(layer)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"masked": dict(self.masked), "fraction": self.fraction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.masked, self.fraction = dict(state["masked"]), state["fraction"]
