"""What every pattern answers: its units, their saliency and cuts, and how a mask over units acts on the tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.kernels import cpu as host_kernels
from pdp.kernels import gpu as kernels
from pdp.layers import Layer, Member
from pdp.masks.cut import keep_units, magnitude_cuts_at
from pdp.masks.soft import soft_prune
from pdp.patterns.options import RandomOptions
from pdp.patterns.weight_forward import Forward
from pdp.schedule.allocation import allocate


@dataclass(frozen=True)
class Wanted:
    """What a budget is asked for."""

    allocation: str
    share: float | None  # of what `Pattern.target_unit` names; None where the allocation says it
    saliency: Callable[[Layer], Tensor]
    path: str | Path | None = None  # of allocation=file
    comparable: bool = False  # whether the saliencies compare across layers as they are


class _Threads(threading.local):
    def __init__(self) -> None:
        self.forwards: list[Any] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Threads:
        return _Threads()


class Pattern:
    """Every weight a unit of its own; other patterns replace what differs."""

    name: ClassVar[str] = "random"
    needs_example: ClassVar[bool] = False  # whether the units can only be found by running the model

    temperature_mode: ClassVar[str] = "absolute"  # of PDP's mask, where nobody says otherwise
    kappa: ClassVar[float] = 0.02  # tau / t^2 in relative mode

    def __init__(self, options: RandomOptions):
        self.options = options
        self._finder: Any = None  # of cuts, which remembers where they lay
        self._bundles: Any = None  # of layers that are masked together on a GPU, and of which weights they are
        self._threads = _Threads()

    @property
    def _forwards(self) -> list[Any]:
        """Those of the whole model that run in this thread now."""
        return self._threads.forwards

    @property
    def label(self) -> str:
        """How records and tables name the pattern."""
        return self.name

    @property
    def target_unit(self) -> str:
        """What the target is a share of: weight, channel or mac."""
        return "weight"

    @property
    def implied_share(self) -> float | None:
        """The target where the pattern itself says it."""
        return None

    def target_of(self, sparsity: float | None) -> float | None:
        """The target share of units; raises `Refusal` where `sparsity` contradicts what the pattern implies."""
        implied = self.implied_share
        if implied is None:
            return sparsity
        if sparsity is not None and abs(sparsity - implied) > 1e-9:
            raise Refusal(f"sparsity={sparsity} contradicts pattern {self.label}, which is {implied}: leave it out")
        return implied

    def gather(self, model: nn.Module, layers: list[Layer], example_input: Any) -> tuple[list[Layer], dict[str, str]]:
        """The layers this pattern prunes, their units counted, and by name why the others stay dense."""
        for layer in layers:
            layer.units = layer.weight.numel()
        return layers, {}

    def budget(self, layers: Sequence[Layer], wanted: Wanted) -> list[int]:
        """How many units each layer loses; raises `Refusal` where what is wanted cannot be met."""
        return allocate(wanted.allocation, layers, wanted.share, wanted.saliency, wanted.path)

    def reached(self, layers: Sequence[Layer]) -> float:
        """The share of what `target_unit` names that is pruned now."""
        return sum(layer.pruned for layer in layers) / sum(layer.units for layer in layers)

    def densities(self, layers: Sequence[Layer], counts: Sequence[int]) -> dict[str, float]:
        """The share of its weights that each layer keeps when so many units go, by module name."""
        return {layer.name: 1 - count / layer.units for layer, count in zip(layers, counts, strict=True)}

    def saliency(self, layer: Layer) -> Tensor:
        """One non-negative number per unit, from the stored weights."""
        return layer.weight.detach().abs()

    def keep(self, layer: Layer, saliency: Tensor) -> Tensor:
        """Which units stay, bool, shaped like `saliency`: exactly `layer.pruned` go."""
        return keep_units(saliency, layer.pruned)

    def alive(self, layer: Layer) -> Tensor:
        """Which units are not zero in the stored weights, bool, shaped like `saliency`."""
        return layer.weight.detach() != 0

    def cuts(self, layers: Sequence[Layer]) -> list[Tensor]:
        """PDP's t of each layer for its current share: one number, or one for each group of units."""
        if any(layer.sharded for layer in layers):  # one whole weight at a time
            return [
                magnitude_cuts_at([layer.weight], [layer.pruned], [layer.trail])[0].to(layer.stored.device)
                for layer in layers
            ]
        weights, pruned = [layer.weight for layer in layers], [layer.pruned for layer in layers]
        kind = _finder_kind(weights)
        if kind is None:
            return magnitude_cuts_at(weights, pruned, [layer.trail for layer in layers])
        if type(self._finder) is not kind or not self._finder.match(weights):
            self._finder = kind(weights)
        return list(self._finder.find(weights, pruned).clone().unbind())

    def spread(self, values: Tensor, layer: Layer, member: Member, weight: Tensor) -> Tensor:
        """Numbers over units (or their groups), made to broadcast against one of the layer's tensors."""
        return values

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, the weights stand still: what cuts and states are both made of is computed once."""
        # A forward that was interrupted has not said so, and the masks are about to change.
        self._forwards.clear()
        yield

    def forget(self) -> None:
        """Drops what was kept of tensors that the layers have no longer, as in a copy."""
        self._finder = None
        self._forwards.clear()

    def soft_states(
        self, layers: Sequence[Layer], cuts: Sequence[Tensor], temperatures: Sequence[Tensor] | float
    ) -> dict[str, list[Tensor]]:
        """By name what `soft_weight` needs of each layer besides the stored weight and the cut."""
        return {}

    def begin_forward(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float) -> None:
        """The whole model's forward begins, in which these layers are masked: they may share what they compute."""
        if any(layer.sharded for layer in layers):  # each is whole only while its own forward runs
            layers = []
        self._forwards.append(self._joint_forward(layers, temperatures) or Forward(layers, temperatures))

    def _joint_forward(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float) -> Any:
        """On a GPU where the kernels run; without gradients an effective weight is made when its layer computes."""
        if len(layers) < 2 or not torch.is_grad_enabled() or not kernels.usable(layers[0].weight):
            return None
        from pdp.patterns.joint_forward import Bundles, JointForward

        key = [id(layer.weight) for layer in layers]
        if self._bundles is None or self._bundles[0] != key:
            self._bundles = (key, Bundles(layers))
        return JointForward(self._bundles[1], temperatures, self._part, self._members)

    @property
    def _members(self) -> int:
        """How many weights share a cut of a group; 1: the layer has a single one."""
        return 1

    def _part(self, layer: Layer, weight: Tensor, temperature: Tensor | None) -> Any:
        """What `pdp.kernels.gpu.joint` needs of a layer; None where it cannot take part."""
        from pdp.kernels.gpu.joint import Part

        cut = layer.state["cut"]
        return Part(weight, cut, temperature, 1) if cut.numel() == 1 else None

    def end_forward(self) -> None:
        """The forward that began last has ended, or raised."""
        # An exception before the beginning was announced ends a forward as well.
        if self._forwards:
            self._forwards.pop()

    def soft_weight(self, layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float) -> Tensor:
        """PDP's effective weight m(w) * w under the cuts in the layer's state."""
        made = self._made(member, weight)
        if made is not None:
            return made
        cut = layer.state["cut"]
        if cut.numel() == 1:
            if kernels.usable(weight) and cut.device == weight.device:
                from pdp.kernels.gpu.masks import device_prune

                return device_prune(weight, cut, temperature, member.compute_dtype(weight))
            if host_kernels.usable(weight) and cut.is_cpu:
                return host_kernels.found().prune(weight, cut, temperature)  # type: ignore[union-attr]
        return soft_prune(weight, self.spread(cut, layer, member, weight), temperature)

    def _made(self, member: Member, weight: Tensor) -> Tensor | None:
        """The effective weight that the running forward has made or makes with others."""
        # A part of a model may be compiled by itself.
        if not self._forwards or torch.compiler.is_compiling():
            return None
        return self._forwards[-1].effective(member, weight)

    def finish(self, model: nn.Module, layer: Layer, keep: Tensor) -> None:
        """The layer is hard: writes whatever further zeros follow."""

    def weights(self, layer: Layer) -> dict[str, Tensor]:
        """The convolution and linear weights that the layer's mask reaches, by module name."""
        return {layer.name: layer.weight}


def _finder_kind(weights: Sequence[Tensor]) -> Any:
    """The class that finds the cuts of all these weights at once, None where `pdp.masks.cut` does."""
    if not weights:
        return None
    if kernels.usable(weights[0]):
        from pdp.kernels.gpu.cuts import Cuts

        first = weights[0]
        alike = all(one.dtype == first.dtype and one.device == first.device for one in weights)
        return Cuts if alike and all(map(kernels.usable, weights)) else None
    return host_kernels.found().cuts if all(map(host_kernels.usable, weights)) else None  # type: ignore[union-attr]


def squared_cut(cut: Tensor) -> Tensor:
    """The mean of t^2 over the cuts that prune anything, 0-dim; no device synchronization."""
    some = cut.isfinite()
    return torch.where(some, cut, torch.zeros_like(cut)).square().sum() / some.sum().clamp(min=1)


def squared_cuts(cuts: Sequence[Tensor]) -> list[Tensor]:
    """`squared_cut` of each layer's cuts; of layers with a single cut in a few operations for all of them."""
    if not cuts or any(one.dim() or one.device != cuts[0].device for one in cuts):
        return [squared_cut(one) for one in cuts]
    return list(torch.stack(list(cuts)).nan_to_num(0.0, 0.0, 0.0).square().unbind())
