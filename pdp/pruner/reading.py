"""What a model reads where it asks a module for its weight outside of that module's own forward.

`F.linear(x, self.qkv.weight)` in a parent's forward, a transposed tie, an attention that hands its children's weights
to one function: no hook of the layer runs there. Its parameters lie in a dictionary that answers such a question with
the effective weight, made at that moment and for that thread, and everybody else (optimizers, state dicts, a look from
outside) with the stored one. A compiled graph does not ask it: there hooks put the weights in place.
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

_ASKED = nn.Module.__getattr__.__code__
_CALLED = nn.Module._call_impl.__code__


class Place:
    """A parameter of a module and the masks that act on it, one after the other where several have parts of it."""

    def __init__(
        self,
        masks: Sequence[tuple[Layer, Member]],
        method: Method,
        quantizer: Quantizer | None = None,
        point: WeightPoint | None = None,
    ):
        self.masks = list(masks)
        self.method = method
        self.quantizer, self.point = quantizer, point  # of a weight that is quantized behind its masks
        self.outside = False  # whether something else than its module may read it

    def __deepcopy__(self, memo: dict[int, Any]) -> Place:
        return self  # a copy of the model is masked by the live state

    @property
    def active(self) -> bool:
        """Whether the effective weight differs from the stored one."""
        return self.quantized or any(layer.active for layer, _ in self.masks)

    @property
    def quantized(self) -> bool:
        """Whether the weight lies on its grid now."""
        return self.point is not None and self.quantizer is not None and self.quantizer.holds

    def effective(self, weight: Tensor) -> Tensor:
        """What the model computes with now in place of `weight`."""
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
    """The weight handed out last in a forward, so that who asks twice is given one tensor."""

    def __init__(self, stored: Tensor, effective: Tensor):
        self.stored = stored
        self.effective = effective
        self.found = self._now()

    def _now(self) -> tuple[int, int, bool]:
        return self.stored._version, self.stored.data_ptr(), torch.is_grad_enabled()

    def fits(self, stored: Tensor) -> bool:
        """Whether it is still that of `stored`."""
        return self.stored is stored and self.found == self._now()


class _Running(threading.local):
    """What this thread knows of the forwards of whole models that it is in."""

    def __init__(self) -> None:
        self.forwards = 0
        self.given: _Given | None = None


_running = _Running()


def begin_forward() -> None:
    """A forward of a whole model begins in this thread."""
    _running.forwards += 1
    _running.given = None


def end_forward() -> None:
    """It has ended, or raised."""
    _running.forwards = max(0, _running.forwards - 1)
    _running.given = None


def reset() -> None:
    """A step ended: no forward runs in this thread, even where one was interrupted and has not said so."""
    _running.forwards = 0
    _running.given = None


def given_before(stored: Tensor) -> Tensor | None:
    """The effective weight that was handed out last, where it is that of `stored` still."""
    given = _running.given
    return given.effective if given is not None and given.fits(stored) else None


class Watched(dict):
    """A module's parameters: who asks the module for one in a forward is given the effective weight."""

    def __init__(self, parameters: dict[str, Any], places: dict[str, Place]):
        super().__init__(parameters)
        self.places = places

    def __getitem__(self, name: str) -> Any:
        stored = super().__getitem__(name)
        place = self.places.get(name)
        if place is None or torch.compiler.is_compiling() or not place.active or stored is None:
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
    """Whether a forward runs in this thread that the module takes part in, or a part of one again in backward."""
    while frame is not None:
        code = frame.f_code
        if code is _CALLED or "forward" in code.co_name:
            caller = frame.f_locals.get("self")
            if isinstance(caller, nn.Module) and any(one is own for one in caller.modules()):
                return True
        frame = frame.f_back
    # A checkpoint computes a function again while gradients are computed, and records; a hook for gradients does not.
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


def _handed_out(place: Place, stored: Tensor) -> Tensor:
    place.outside = True
    effective = given_before(stored)
    if effective is None:
        with for_any_use():
            effective = place.effective(stored)
        # Outside of a forward nothing says when its graph is gone.
        if _running.forwards and not in_transform():
            _running.given = _Given(stored, effective)
    return effective if in_transform() else readable(effective, stored, partial(_written, stored))


def _written(stored: Tensor) -> None:
    """The model writes to the weight, perhaps through `data`, which no version tells."""
    _running.given = None
    with torch.no_grad():
        stored[:0].zero_()
