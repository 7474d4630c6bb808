"""What every pattern defines: its units, their saliency and cuts, and how a mask over units applies to tensors."""

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
from pdp.patterns.options import RandomOptions, label_of
from pdp.patterns.weight_forward import Forward
from pdp.schedule.allocation import allocate
from pdp.sharded import is_sharded


@dataclass(frozen=True)
class Wanted:
    """What a budget is computed from."""

    allocation: str
    share: float | None  # of what `Pattern.target_unit` names; None if the allocation determines it
    saliency: Callable[[Layer], Tensor]
    path: str | Path | None = None  # for allocation=file
    comparable: bool = False  # whether saliencies can be compared across layers as they are


class _Threads(threading.local):
    def __init__(self) -> None:
        self.forwards: list[Any] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Threads:
        return _Threads()

    def __reduce__(self) -> Any:
        raise Refusal(
            "a model that a pruner works on cannot be pickled: save model.state_dict() and pruner.state_dict(), or the "
            "model after finalize()"
        )


class Pattern:
    """The base class treats every weight as a unit of its own; other patterns override what differs."""

    name: ClassVar[str] = "random"
    needs_example: ClassVar[bool] = False  # whether finding the units requires running the model

    temperature_mode: ClassVar[str] = "absolute"  # of PDP's mask, unless the user chooses one
    kappa: ClassVar[float] = 0.02  # tau / t^2 in relative mode

    def __init__(self, options: RandomOptions):
        self.options = options
        self._finder: Any = None  # finds cuts and remembers the last ones
        self._bundles: Any = None  # layers masked together on a GPU, and the weights that they had
        self._threads = _Threads()

    @property
    def _forwards(self) -> list[Any]:
        """The forwards of the whole model that are running in this thread."""
        return self._threads.forwards

    @property
    def label(self) -> str:
        """The pattern's name in records and tables."""
        return label_of(self.name, vars(self.options))

    @property
    def target_unit(self) -> str:
        """What the target is a share of: weight, channel or mac."""
        return "weight"

    @property
    def implied_share(self) -> float | None:
        """The target share if the pattern itself determines it, else None."""
        return None

    def target_of(self, sparsity: float | None) -> float | None:
        """The target share of units; raises `Refusal` if `sparsity` contradicts what the pattern implies."""
        implied = self.implied_share
        if implied is None:
            return sparsity
        if sparsity is not None and abs(sparsity - implied) > 1e-9:
            raise Refusal(f"sparsity={sparsity} contradicts pattern {self.label}, which is {implied}: leave it out")
        return implied

    def gather(self, model: nn.Module, layers: list[Layer], example_input: Any) -> tuple[list[Layer], dict[str, str]]:
        """The layers that this pattern prunes, with their units counted, and by name why the others stay dense."""
        for layer in layers:
            layer.units = layer.weight.numel()
        return layers, {}

    def budget(self, layers: Sequence[Layer], wanted: Wanted) -> list[int]:
        """How many units each layer loses; raises `Refusal` if the request cannot be met."""
        return allocate(wanted.allocation, layers, wanted.share, wanted.saliency, wanted.path)

    def amount(self, layer: Layer, units: float) -> int:
        """What the layer can lose that is nearest to so many units."""
        return int(units + 0.5)

    def removed(self, layer: Layer, keep: Tensor) -> int:
        """How many units a mask shaped like the layer's saliency takes away."""
        return int((~keep).sum())

    def reached(self, layers: Sequence[Layer]) -> float:
        """The share that is pruned now, of what `target_unit` names."""
        return sum(layer.pruned for layer in layers) / sum(layer.units for layer in layers)

    def densities(self, layers: Sequence[Layer], counts: Sequence[int]) -> dict[str, float]:
        """The share of its weights that each layer keeps if so many units are removed, by module name."""
        return {layer.name: 1 - count / layer.units for layer, count in zip(layers, counts, strict=True)}

    def saliency(self, layer: Layer) -> Tensor:
        """One non-negative number per unit (per block of units), computed from the stored weights."""
        return layer.weight.detach().abs()

    def keep(self, layer: Layer, saliency: Tensor) -> Tensor:
        """Which units stay: bool, shaped like `saliency`; exactly `layer.pruned` go, as near as whole blocks come."""
        return keep_units(saliency, layer.pruned)

    def alive(self, layer: Layer) -> Tensor:
        """Which units are not zero in the stored weights: bool, shaped like `saliency`."""
        return layer.weight.detach() != 0

    def cuts(self, layers: Sequence[Layer], held: Sequence[Tensor | None] = ()) -> list[Tensor]:
        """PDP's cut t of each layer for its current share: one number, or one per group of units.

        `held` are tensors, at most one for each layer, in which its cut may be written and returned.
        """
        weights = _at_hand(layers)
        if weights is None:  # one whole weight at a time
            return [
                magnitude_cuts_at([layer.weight], [layer.pruned], [layer.trail])[0].to(layer.stored.device)
                for layer in layers
            ]
        pruned = [layer.pruned for layer in layers]
        kind = _finder_kind(weights)
        if kind is None:
            return magnitude_cuts_at(weights, pruned, [layer.trail for layer in layers])
        if type(self._finder) is not kind or not self._finder.match(weights):
            self._finder = kind(weights)
        into = getattr(self._finder, "find_into", None)  # of the CPU's
        if into is not None and held and all(map(_is_host_number, held)):
            into(weights, pruned, held)
            return list(held)  # type: ignore[arg-type]
        return list(self._finder.find(weights, pruned).clone().unbind())

    def spread(self, values: Tensor, layer: Layer, member: Member, weight: Tensor) -> Tensor:
        """Numbers per unit (or per group), expanded so that they broadcast against one of the layer's tensors."""
        return values

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """While this context is open the weights do not change, so what cuts and states both need is computed once."""
        # A forward that was interrupted did not report its end, and the masks are about to change.
        self._forwards.clear()
        yield

    def forget(self) -> None:
        """Drops what is cached for tensors that the layers no longer have, as after a copy."""
        self._finder = None
        self._forwards.clear()

    def soft_states(
        self, layers: Sequence[Layer], cuts: Sequence[Tensor], temperatures: Sequence[Tensor] | float
    ) -> dict[str, list[Tensor]]:
        """What `soft_weight` needs of each layer besides the stored weight and the cut, by name."""
        return {}

    def begin_forward(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float) -> None:
        """To be called when a forward of the whole model begins: its layers may then share their computations."""
        weights = _at_hand(layers)
        if weights is None:  # each is whole only while its own forward runs
            layers, weights = [], []
        running = self._joint_forward(layers, temperatures)
        self._forwards.append(running or Forward(layers, temperatures, weights, self._host_masks))

    def _joint_forward(self, layers: Sequence[Layer], temperatures: Sequence[Tensor] | float) -> Any:
        """The joint forward on a GPU with the kernels; without gradients, layers compute their weights one by one."""
        if len(layers) < 2 or not torch.is_grad_enabled() or not kernels.usable(layers[0].weight):
            return None
        from pdp.patterns.joint_forward import Bundles, JointForward

        key = [id(layer.weight) for layer in layers]
        if self._bundles is None or self._bundles[0] != key:
            self._bundles = (key, Bundles(layers))
        return JointForward(self._bundles[1], temperatures, self._part, self._members)

    def _host_masks(
        self, layers: Sequence[Layer], weights: Sequence[Tensor], temperatures: Sequence[Tensor | float]
    ) -> Any:
        """The layers' masks for `pdp.kernels.cpu.joint`; None if they cannot be computed together."""
        cuts = [layer.state["cut"] for layer in layers]
        if any(cut.numel() > 1 or not cut.is_cpu or cut.dtype is not torch.float32 for cut in cuts):
            return None
        return host_kernels.found().single_cuts(cuts, [float(tau) for tau in temperatures])  # type: ignore[union-attr]

    @property
    def _members(self) -> int:
        """How many weights share the cut of a group; 1 if the layer has a single cut."""
        return 1

    def _part(self, layer: Layer, weight: Tensor, temperature: Tensor | None) -> Any:
        """A layer's part for `pdp.kernels.gpu.joint`; None if it cannot take part."""
        from pdp.kernels.gpu.joint import Part

        cut = layer.state["cut"]
        return Part(weight, cut, temperature, 1) if cut.numel() == 1 else None

    def end_forward(self) -> None:
        """To be called when the forward that began last has ended or raised."""
        # This is also called if an exception came before the forward was announced.
        if self._forwards:
            self._forwards.pop()

    def soft_weight(self, layer: Layer, member: Member, weight: Tensor, temperature: Tensor | float) -> Tensor:
        """PDP's effective weight m(w) * w under the cuts in the layer's state."""
        made = self.prepared(member, weight)
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

    def prepared(self, member: Member, weight: Tensor) -> Tensor | None:
        """`soft_weight` as the running forward has computed it, or now does, together with others; else None."""
        running = self._threads.forwards
        # A part of the model may be compiled separately.
        if not running or torch.compiler.is_compiling():
            return None
        return running[-1].effective(member, weight)

    def finish(self, model: nn.Module, layer: Layer, keep: Tensor) -> None:
        """Called when the layer has become hard: writes any further zeros that follow from it."""

    def weights(self, layer: Layer) -> dict[str, Tensor]:
        """The convolution and linear weights that the layer's mask affects, by module name."""
        return {layer.name: layer.weight}


def _at_hand(layers: Sequence[Layer]) -> list[Tensor] | None:
    """The layers' weights; None where this process holds a part of one."""
    weights: list[Tensor] = [layer.stored for layer in layers]
    return None if any(map(is_sharded, weights)) else weights


def _finder_kind(weights: Sequence[Tensor]) -> Any:
    """The class that finds the cuts of all these weights at once; None if `pdp.masks.cut` does it."""
    if not weights:
        return None
    if kernels.usable(weights[0]):
        from pdp.kernels.gpu.cuts import Cuts

        first = weights[0]
        alike = all(one.dtype == first.dtype and one.device == first.device for one in weights)
        return Cuts if alike and all(map(kernels.usable, weights)) else None
    return host_kernels.found().cuts if host_kernels.usable(*weights) else None  # type: ignore[union-attr]


def _is_host_number(held: Tensor | None) -> bool:
    """Whether this is a float32 number in the processor's memory that may be overwritten."""
    plain = type(held) is Tensor and held.dtype is torch.float32 and held.is_cpu and not held.dim()
    return plain and not held.is_inference()  # type: ignore[union-attr]


def squared_cut(cut: Tensor) -> Tensor:
    """The mean of t^2 over the cuts that prune anything; 0-dim, without device synchronization."""
    some = cut.isfinite()
    return torch.where(some, cut, torch.zeros_like(cut)).square().sum() / some.sum().clamp(min=1)


def squared_cuts(cuts: Sequence[Tensor]) -> list[Tensor]:
    """`squared_cut` of each layer's cuts; layers with a single cut are handled together in a few operations."""
    if not cuts or any(one.dim() or one.device != cuts[0].device for one in cuts):
        return [squared_cut(one) for one in cuts]
    return list(torch.stack(list(cuts)).nan_to_num(0.0, 0.0, 0.0).square().unbind())
