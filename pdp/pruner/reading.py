"""Weights that a model reads from a module outside of that module's own forward.

Examples are `F.linear(x, self.qkv.weight)` in a parent's forward, a transposed tied weight, and an attention that
passes its children's weights to one function: no hook of the layer runs there. Therefore the module's parameters are
kept in a dict that returns the effective weight, computed at that moment, to code in a forward of the same thread, and
the stored weight to everything else (optimizers, state dicts, inspection from outside). A compiled graph does not use
this dict; there, hooks put the weights in place.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pdp.layers import Layer, Member
from pdp.masks.transforms import in_transform
from pdp.methods.method import Method
from pdp.pruner.readable import readable
from pdp.quantize.points import WeightPoint
from pdp.quantize.quantizer import Quantizer
from pdp.reading_mode import for_any_use, reads_stored
from pdp.sharded import is_sharded

_ASKED = nn.Module.__getattr__.__code__
_CALLED = nn.Module._call_impl.__code__


class Place:
    """A parameter of a module with the masks that apply to it, one after the other if several have parts of it."""

    def __init__(
        self,
        masks: Sequence[tuple[Layer, Member]],
        method: Method,
        quantizer: Quantizer | None = None,
        point: WeightPoint | None = None,
    ):
        self.masks = list(masks)
        self.method = method
        self.quantizer, self.point = quantizer, point  # of a weight that is quantized after masking
        self.outside = False  # whether anything besides its module may read it
        # The mask of a weight that has just one, and nothing else that changes the weight.
        one = len(self.masks) == 1 and point is None and self.masks[0][1].sites[0].index is None
        self.only = self.masks[0] if one else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Place:
        return self  # a copy of the model uses the live masks

    @property
    def active(self) -> bool:
        """Whether the effective weight differs from the stored one."""
        if self.only is not None and self.only[0].active:  # asked several times for each layer in every step
            return True
        return any(layer.active or layer.adapter is not None for layer, _ in self.masks) or self.quantized

    @property
    def quantized(self) -> bool:
        """Whether the weight lies on its grid now."""
        return self.point is not None and self.quantizer is not None and self.quantizer.holds

    def effective(self, weight: Tensor) -> Tensor:
        """What the model uses in place of `weight` now."""
        if self.only is not None:
            layer, member = self.only
            if layer.active and layer.adapter is None and layer.hard_keep is None:
                made = self.method.prepared_weight(member, weight)
                layer.was_read = True
                return self._by(layer, member, weight) if made is None else made
        if not self.quantized:
            return self._masked(weight)
        if torch.compiler.is_compiling():
            effective = self._masked(weight)
        else:
            with for_any_use():  # in the weight's own type: bfloat16 has no room for a grid
                effective = self._masked(weight)
        return self.quantizer.weight(self.point, effective)  # type: ignore[union-attr, arg-type]

    def _masked(self, weight: Tensor) -> Tensor:
        matrices: list[Tensor] | None = None  # of a stack, each with a mask of its own
        for own, member in self.masks:
            own.was_read = True
            if own.adapter is not None and member.weighs:
                weight = own.adapter.added(weight)
            if own.active:
                index = member.sites[0].index
                if index is None:
                    weight = self._by(own, member, weight)
                else:
                    matrices = matrices or list(weight.unbind(0))
                    matrices[index] = self._by(own, member, matrices[index])
        return weight if matrices is None else torch.stack([one.to(weight.dtype) for one in matrices])

    def _by(self, own: Layer, member: Member, weight: Tensor) -> Tensor:
        layer = own.beside(weight)
        if layer.hard_keep is not None:
            return self.method.hard_weight(layer, weight, layer.hard_keep, member)
        return self.method.effective_weight(layer, weight, member)


class _Given:
    """The weight that was last handed out in a forward, so that a second read gets the same tensor."""

    def __init__(self, stored: Tensor, effective: Tensor):
        self.stored = stored
        self.effective = effective
        self.found = self._now()

    def _now(self) -> tuple[int, int, bool]:
        return self.stored._version, self.stored.data_ptr(), torch.is_grad_enabled()

    def fits(self, stored: Tensor) -> bool:
        """Whether it still is the effective weight of `stored`."""
        return self.stored is stored and self.found == self._now()


class _Running(threading.local):
    """The forwards of whole models that run in this thread."""

    def __init__(self) -> None:
        self.forwards = 0
        self.given: _Given | None = None


_running = _Running()


def begin_forward() -> None:
    """To be called when a forward of a whole model begins in this thread."""
    _running.forwards += 1
    _running.given = None


def end_forward() -> None:
    """To be called when it has ended or raised."""
    _running.forwards = max(0, _running.forwards - 1)
    _running.given = None


def reset() -> None:
    """To be called after a step: no forward runs in this thread, even if an interrupted one did not report its end."""
    _running.forwards = 0
    _running.given = None


def given_before(stored: Tensor) -> Tensor | None:
    """The effective weight that was last handed out, if it still belongs to `stored`; else None."""
    given = _running.given
    return given.effective if given is not None and given.fits(stored) else None


class Watched(dict):
    """A module's parameters; code that reads one through the module in a forward gets the effective weight."""

    def __init__(self, parameters: dict[str, Any], places: dict[str, Place]):
        super().__init__(parameters)
        self.places = places

    def __getitem__(self, name: str) -> Any:
        stored = super().__getitem__(name)
        place = self.places.get(name)
        if place is None or torch.compiler.is_compiling() or not place.active or stored is None:
            return stored
        if is_sharded(stored):  # FSDP asks, before it makes whole what the model computes with
            return stored
        asking = sys._getframe(1)
        if asking.f_code is not _ASKED or reads_stored():
            return stored
        if not _in_forward(asking.f_locals["self"], asking.f_back):
            return stored
        return _handed_out(place, stored)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        memo[id(self)] = twin = Watched({}, self.places)
        for name, parameter in self.items():
            dict.__setitem__(twin, name, copy.deepcopy(parameter, memo))
        return twin

    def __copy__(self) -> Watched:
        return Watched(self, self.places)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self.items()),)


def _in_forward(own: nn.Module, frame: Any) -> bool:
    """Whether this thread is in a forward that includes the module, or repeats a part of one in backward."""
    while frame is not None:
        code = frame.f_code
        if code is _CALLED or "forward" in code.co_name:
            caller = frame.f_locals.get("self")
            if isinstance(caller, nn.Module) and any(one is own for one in caller.modules()):
                return True
        frame = frame.f_back
    # Checkpointing repeats a function during backward with gradients recorded; gradient hooks record none.
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


def _handed_out(place: Place, stored: Tensor) -> Tensor:
    place.outside = True
    effective = given_before(stored)
    if effective is None:
        with for_any_use():
            effective = place.effective(stored)
        # Outside of a forward it is unknown when the graph is freed.
        if _running.forwards and not in_transform():
            _running.given = _Given(stored, effective)
    return effective if in_transform() else readable(effective, stored, partial(_written, stored))


def _written(stored: Tensor) -> None:
    """Called when the model has written to the weight, perhaps through `data`, which does not change its version."""
    _running.given = None
    with torch.no_grad():
        stored[:0].zero_()
