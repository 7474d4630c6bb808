"""Forward hooks that let a layer compute with a different weight than the one it stores.

The effective weight is put into the module's `__dict__`, where attribute look-up finds it before the Parameter, and
only while the module's forward runs. Optimizers, state dicts, DDP, deep copies and weight averages never see it. Reads
outside of the module's own forward are handled by `pdp.pruner.reading`, or in a compiled graph by hooks on the modules
around.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pdp.layers import Layer, Member, Site
from pdp.masks.transforms import in_transform
from pdp.methods.method import Method
from pdp.pruner import reading
from pdp.pruner.code import reading_of
from pdp.pruner.compiling import counted_apart, guard_hooks, mark_of, take_out, uncover, unmark
from pdp.pruner.reading import Place, Watched
from pdp.quantize.hooks import ActivationHook
from pdp.quantize.points import WeightPoint
from pdp.quantize.quantizer import Quantizer
from pdp.reading_mode import reads_stored

_placing = threading.Lock()  # held while a weight is put in place, never while one is computed


class Shadow:
    """The pair of hooks for one module that uses a weight. A deep copy of the model shares the layer's live state."""

    def __init__(self, place: Place, site: Site, key: str, threads: list[int]):
        self.place = place
        self.threads = threads  # ids of those that run a forward in which weights are read outside of their modules
        # A path instead of the module itself, because in a deep copy the hook must act on the copy.
        self.inner = _path(site.caller, site.module)
        self.parameter = site.parameter
        self.key = key  # the module's name in its parent
        self.around = mark_of(site.parameter)  # the key in `__dict__` that says which hook put the weight there
        self.inside: list[int] = []  # ids of the threads that are in the forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Shadow:
        return self

    def attach(self, caller: nn.Module) -> list[RemovableHandle]:
        """Registers both hooks; the second one runs even if the forward raises."""
        return [
            caller.register_forward_pre_hook(self.put),
            caller.register_forward_hook(self.take, always_call=True),
        ]

    def put(self, caller: nn.Module, inputs: Any) -> None:
        """Puts the effective weight in place of the stored one."""
        if not self.place.active:
            return
        held = (caller.get_submodule(self.inner) if self.inner else caller).__dict__
        if held.get(self.around) is not None:
            return  # already put there for a forward around this one
        weight = held["_parameters"].get(self.parameter)
        if torch.compiler.is_compiling():
            held[self.parameter] = self.place.effective(weight)
            return
        if weight is None:  # in a temporary replica of nn.DataParallel
            if isinstance(held.get(self.parameter), Tensor):
                held[self.parameter] = self.place.effective(held[self.parameter])
                held[self.around] = True
            return
        own, effective = threading.get_ident(), None
        if not self.inside and self.threads.count(own) == len(self.threads) and not reads_stored():
            given = reading.given_before(weight)
            effective = self.place.effective(weight) if given is None else given
        with _placing:
            self.inside.append(own)
            if len(self.inside) > 1 or self.threads.count(own) < len(self.threads):
                # The forward runs twice at the same time, in two threads or recursively, so each look-up is answered
                # separately.
                held.pop(self.parameter, None)
            elif effective is not None:  # nothing but this one forward of this thread can find it
                held[self.parameter] = effective

    def take(self, caller: nn.Module, inputs: Any, output: Any) -> None:
        """Removes the effective weight again."""
        held = (caller.get_submodule(self.inner) if self.inner else caller).__dict__
        if held.get(self.around) is not None:
            return
        if not torch.compiler.is_compiling():
            own = threading.get_ident()
            if own in self.inside:
                self.inside.remove(own)
        take_out(held, self.parameter)


class Around:
    """The pair of hooks for a module whose forward may read the weights of modules inside it.

    In a compiled graph, where look-ups are not intercepted, and in a replica of `nn.DataParallel`, the effective
    weights that something besides their own module reads (as its code or an earlier look-up has shown) are in place
    during the whole forward. Elsewhere no weight is in place that a forward in another thread has made.
    """

    def __init__(self, model: nn.Module, shadows: Sequence[tuple[Shadow, nn.Module]], threads: list[int]):
        self.inner = [(shadow, _path(model, module)) for shadow, module in shadows]
        self.number = id(self)
        self.threads = threads
        self.entered: list[int] = []  # ids of the threads whose forward, not a compiled one, began with this hook

    def __deepcopy__(self, memo: dict[int, Any]) -> Around:
        return self

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Registers both hooks; the second one runs even if the forward raises."""
        return [
            model.register_forward_pre_hook(counted_apart(self.put)),
            model.register_forward_hook(self.take, always_call=True),
        ]

    def put(self, model: nn.Module, inputs: Any) -> None:
        """Puts all these effective weights in place, or takes out what other threads have."""
        if not (torch.compiler.is_compiling() or "_is_replica" in model.__dict__):
            self._enter(model)
            return
        for shadow, path in self.inner:
            held = (model.get_submodule(path) if path else model).__dict__
            if not shadow.place.active or not shadow.place.outside or held.get(shadow.around) is not None:
                continue
            weight = held["_parameters"].get(shadow.parameter)
            if weight is None:
                weight = held.get(shadow.parameter)
            if weight is not None:
                held[shadow.parameter] = shadow.place.effective(weight)
                held[shadow.around] = self.number

    def take(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Removes what this forward put in place, also if only `put` was compiled."""
        if torch.compiler.is_compiling() or "_is_replica" in model.__dict__:
            self._clear(model, self.inner)
            return
        own = threading.get_ident()
        if own in self.entered:
            self.entered.remove(own)
            if own in self.threads:
                self.threads.remove(own)
        self._clear_left(model)

    def _clear(self, model: nn.Module, inner: Sequence[tuple[Shadow, str]]) -> None:
        for shadow, path in inner:
            held = (model.get_submodule(path) if path else model).__dict__
            if held.get(shadow.around) == self.number:
                unmark(held, shadow.around)
                take_out(held, shadow.parameter)

    def _clear_left(self, model: nn.Module) -> None:
        """Removes what a compiled `put` has left: torch.compile may make each hook a frame of its own, and reuse one.

        It does so around a forward of the user's own class, and where the graph breaks.
        """
        self._clear(model, [one for one in self.inner if one[0].place.outside])

    def _enter(self, model: nn.Module) -> None:
        self._clear_left(model)
        own = threading.get_ident()
        with _placing:
            self.entered.append(own)
            self.threads.append(own)
            if any(thread != own for thread in self.threads):
                alive = {thread.ident for thread in threading.enumerate()}
                # An interrupt may have kept a thread from reporting its end.
                self.threads[:] = [thread for thread in self.threads if thread in alive]
                for shadow, path in self.inner:
                    held = (model.get_submodule(path) if path else model).__dict__
                    if held.get(shadow.around) is None:
                        held.pop(shadow.parameter, None)


class WholeForward:
    """The pair of hooks on the whole model that tell the method when a forward begins and ends.

    A deep copy of the model keeps the hooks of its modules, but its forwards are not announced to the method, because
    what layers share in a forward belongs to the original's weights.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], method: Method):
        self.model = model
        self.layers = layers
        self.method = method

    def __deepcopy__(self, memo: dict[int, Any]) -> WholeForward:
        return self

    def attach(self) -> list[RemovableHandle]:
        """Registers both hooks; the second one runs even if the forward raises."""
        return [
            self.model.register_forward_pre_hook(self.begin),
            self.model.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, model: nn.Module, inputs: Any) -> None:
        """A forward of the model begins."""
        # In a compiled forward every layer computes by itself, because anything kept outside would become an output of
        # the graph.
        if torch.compiler.is_compiling() or in_transform():
            return
        reading.begin_forward()
        if model is self.model:
            self.method.begin_forward(self.layers)

    def end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """The forward has ended."""
        if torch.compiler.is_compiling() or in_transform():
            return
        if model is self.model:
            self.method.end_forward()
        reading.end_forward()


def hook(
    model: nn.Module, layers: Sequence[Layer], method: Method, quantizer: Quantizer | None = None
) -> list[RemovableHandle]:
    """Registers all hooks of these layers and of the quantizer, and intercepts look-ups of their weights."""
    guard_hooks([Shadow.put, Shadow.take, Around.take])
    # The whole model's hooks come first: if the model is a layer itself, its weight is masked inside its own forward.
    threads: list[int] = []
    handles = WholeForward(model, layers, method).attach()
    places: dict[tuple[int, int, str], tuple[Site, list[tuple[Layer, Member]]]] = {}
    for layer in layers:
        for member in layer.members:
            for site in member.sites:
                key = (id(site.caller), id(site.module), site.parameter)
                places.setdefault(key, (site, []))[1].append((layer, member))
    points: dict[tuple[int, int, str], WeightPoint] = {}
    for site, point in quantizer.points_by_place() if quantizer is not None else ():
        key = (id(site.caller), id(site.module), site.parameter)
        places.setdefault(key, (site, []))
        points[key] = point
    keys = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    shadows = [
        (Shadow(Place(masks, method, quantizer, points.get(key)), site, keys[id(site.module)], threads), site)
        for key, (site, masks) in places.items()
    ]
    for module in model.modules():
        within = set(map(id, module.modules())) - {id(module)}
        below = [(shadow, site.module) for shadow, site in shadows if id(site.module) in within]
        may_read = reading_of(module) if below else None
        read = [(shadow, inner) for shadow, inner in below if may_read and may_read(shadow.key)]
        for shadow, _ in read:
            shadow.place.outside = True
        if module is model or read:
            handles += Around(module, below if module is model else read, threads).attach(module)
    watched: dict[int, tuple[nn.Module, dict[str, Place]]] = {}
    for shadow, site in shadows:
        handles += shadow.attach(site.caller)
        watched.setdefault(id(site.module), (site.module, {}))[1][site.parameter] = shadow.place
    for module, own in watched.values():
        module.__dict__["_parameters"] = Watched(module._parameters, own)
    return handles + quantizer.attach() if quantizer is not None else handles


def unhook(layers: Sequence[Layer], handles: list[RemovableHandle], quantizer: Quantizer | None = None) -> None:
    """Removes everything that `hook` has added."""
    for handle in handles:
        handle.remove()
    handles.clear()
    sites = [site for layer in layers for member in layer.members for site in member.sites]
    sites += [site for site, _ in quantizer.points_by_place()] if quantizer is not None else []
    uncover(sites)
    for site in sites:
        if isinstance(site.module._parameters, Watched):
            site.module.__dict__["_parameters"] = dict(site.module._parameters.items())


def _path(caller: nn.Module, inner: nn.Module) -> str:
    return next(name for name, module in caller.named_modules() if module is inner)


def strip(model: nn.Module) -> None:
    """Removes all hooks that a copy of a model has inherited."""
    for module in model.modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, one in table.items() if isinstance(getattr(one, "__self__", None), _HOOKS)]:
                del table[key]
                module._forward_hooks_always_called.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        if isinstance(module._parameters, Watched):
            module.__dict__["_parameters"] = dict(module._parameters.items())


_HOOKS = (Shadow, Around, WholeForward, ActivationHook)
