"""Forward hooks that let a layer compute with another weight than the one it stores.

The effective weight lies in the module's `__dict__`, where attribute look-up finds it before the Parameter, and only
while the module's forward runs. Optimizers, state dicts, DDP, deep copies and averages never see it. What is read
outside of the module's own forward is answered by `pdp.pruner.reading`, and in a compiled graph by hooks around.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pdp.layers import Layer, Member, Site
from pdp.masks.transforms import in_transform
from pdp.methods.method import Method
from pdp.pruner import reading
from pdp.pruner.compiling import guard_hooks, take_out, uncover
from pdp.pruner.reading import Place, Watched
from pdp.quantize.hooks import ActivationHook
from pdp.quantize.points import WeightPoint
from pdp.quantize.quantizer import Quantizer
from pdp.reading_mode import reads_stored


class Shadow:
    """The pair of hooks of one place that uses a weight. A deep copy of the model shares the layer's live state."""

    def __init__(self, place: Place, site: Site, key: str):
        self.place = place
        # A path instead of the module itself: in a deep copy the hook must act on the copy.
        self.inner = _path(site.caller, site.module)
        self.parameter = site.parameter
        self.key = key  # what the module is called by the one that holds it
        self.around = f"{site.parameter} around"  # the key in the module's `__dict__` that says who put it there
        self.inside: list[int] = []  # threads in the forward now

    def __deepcopy__(self, memo: dict[int, Any]) -> Shadow:
        return self

    def attach(self, caller: nn.Module) -> list[RemovableHandle]:
        """Registers both hooks; the second runs even when the forward raises."""
        return [
            caller.register_forward_pre_hook(self.put),
            caller.register_forward_hook(self.take, always_call=True),
        ]

    def put(self, caller: nn.Module, inputs: Any) -> None:
        """Puts the effective weight in the stored one's place."""
        if not self.place.active:
            return
        module = caller.get_submodule(self.inner) if self.inner else caller
        held = module.__dict__
        if self.around in held:
            return  # put for a forward around this one
        weight = module._parameters.get(self.parameter)
        if torch.compiler.is_compiling():
            held[self.parameter] = self.place.effective(weight)  # type: ignore[arg-type]
            return
        if weight is None:  # in a replica of nn.DataParallel, which is thrown away
            if isinstance(held.get(self.parameter), Tensor):
                held[self.parameter] = self.place.effective(held[self.parameter])
                held[self.around] = True
            return
        self.inside.append(threading.get_ident())
        if len(self.inside) > 1:
            # It runs twice at once, in two threads or in itself: each look-up is answered apart.
            held.pop(self.parameter, None)
        elif not reads_stored():
            given = reading.given_before(weight)
            held[self.parameter] = self.place.effective(weight) if given is None else given

    def take(self, caller: nn.Module, inputs: Any, output: Any) -> None:
        """Takes it out again."""
        module = caller.get_submodule(self.inner) if self.inner else caller
        held = module.__dict__
        if self.around in held:
            return
        if not torch.compiler.is_compiling():
            own = threading.get_ident()
            if own in self.inside:
                self.inside.remove(own)
        take_out(held, self.parameter)


class Around:
    """The pair of hooks of a module whose forward may read weights of the modules in it.

    In a compiled graph, where no look-up is answered, and in a replica of `nn.DataParallel` the effective weights that
    something else than their module reads, as the code says or a look-up has shown, lie in place for its whole forward.
    """

    def __init__(self, model: nn.Module, shadows: Sequence[tuple[Shadow, nn.Module]]):
        self.inner = [(shadow, _path(model, module)) for shadow, module in shadows]
        self.number = id(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Around:
        return self

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Registers both hooks; the second runs even when the forward raises."""
        return [
            model.register_forward_pre_hook(self.put),
            model.register_forward_hook(self.take, always_call=True),
        ]

    def put(self, model: nn.Module, inputs: Any) -> None:
        """Puts all effective weights in place."""
        if not (torch.compiler.is_compiling() or "_is_replica" in model.__dict__):
            return
        for shadow, path in self.inner:
            held = (model.get_submodule(path) if path else model).__dict__
            if not shadow.place.active or not shadow.place.outside or shadow.around in held:
                continue
            weight = held["_parameters"].get(shadow.parameter)
            if weight is None:
                weight = held.get(shadow.parameter)
            if weight is not None:
                held[shadow.parameter] = shadow.place.effective(weight)
                held[shadow.around] = self.number

    def take(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Takes out what this forward put in place."""
        if not torch.compiler.is_compiling():
            return
        for shadow, path in self.inner:
            held = (model.get_submodule(path) if path else model).__dict__
            if held.get(shadow.around) == self.number:
                del held[shadow.around], held[shadow.parameter]


class WholeForward:
    """The pair of hooks of the whole model, which tell the method where a forward begins and ends.

    A deep copy of the model keeps its places' hooks but announces nothing: what a forward shares is of its own weights.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], method: Method):
        self.model = model
        self.layers = layers
        self.method = method

    def __deepcopy__(self, memo: dict[int, Any]) -> WholeForward:
        return self

    def attach(self) -> list[RemovableHandle]:
        """Registers both hooks; the second runs even when the forward raises."""
        return [
            self.model.register_forward_pre_hook(self.begin),
            self.model.register_forward_hook(self.end, always_call=True),
        ]

    def begin(self, model: nn.Module, inputs: Any) -> None:
        """A forward of the model begins."""
        # In a compiled one each place computes for itself: what is kept beside the graph would be an output of it.
        if torch.compiler.is_compiling() or in_transform():
            return
        reading.begin_forward()
        if model is self.model:
            self.method.begin_forward(self.layers)

    def end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """It has ended."""
        if torch.compiler.is_compiling() or in_transform():
            return
        if model is self.model:
            self.method.end_forward()
        reading.end_forward()


def hook(
    model: nn.Module, layers: Sequence[Layer], method: Method, quantizer: Quantizer | None = None
) -> list[RemovableHandle]:
    """Registers all hooks of these layers, and of what is quantized, and answers look-ups of their weights."""
    guard_hooks()
    # The whole model's come first: where it is a layer itself, its weight is masked inside its own forward.
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
        (Shadow(Place(masks, method, quantizer, points.get(key)), site, keys[id(site.module)]), site)
        for key, (site, masks) in places.items()
    ]
    for module in model.modules():
        within = set(map(id, module.modules())) - {id(module)}
        below = [(shadow, site.module) for shadow, site in shadows if id(site.module) in within]
        read = [(shadow, inner) for shadow, inner in below if _may_read(type(module), shadow.key)]  # type: ignore[arg-type]
        for shadow, _ in read:
            shadow.place.outside = True
        if module is model or read:
            handles += Around(module, below if module is model else read).attach(module)
    watched: dict[int, tuple[nn.Module, dict[str, Place]]] = {}
    for shadow, site in shadows:
        handles += shadow.attach(site.caller)
        watched.setdefault(id(site.module), (site.module, {}))[1][site.parameter] = shadow.place
    for module, own in watched.values():
        module.__dict__["_parameters"] = Watched(module._parameters, own)
    return handles + quantizer.attach() if quantizer is not None else handles


def unhook(layers: Sequence[Layer], handles: list[RemovableHandle], quantizer: Quantizer | None = None) -> None:
    """Takes everything off again that `hook` put on."""
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


@cache
def _may_read(kind: type[nn.Module], key: str) -> bool:
    """Whether the class's own code asks a child of that name for a `weight`, as a parent does that multiplies by it."""
    own = [one for one in kind.__mro__ if not one.__module__.startswith("torch.nn.")]
    functions = [
        function
        for one in own
        for name, function in vars(one).items()
        if hasattr(function, "__code__") and not any(word in name for word in ("init", "reset", "tie", "load"))
    ]
    codes = (code for function in functions for code in _codes(function.__code__))
    return any("weight" in code.co_names and (key.isdigit() or key in code.co_names) for code in codes)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def strip(model: nn.Module) -> None:
    """Takes off whatever hooks a copy of a model has brought along."""
    for module in model.modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, one in table.items() if isinstance(getattr(one, "__self__", None), _HOOKS)]:
                del table[key]
                module._forward_hooks_always_called.pop(key, None)
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        if isinstance(module._parameters, Watched):
            module.__dict__["_parameters"] = dict(module._parameters.items())


_HOOKS = (Shadow, Around, WholeForward, ActivationHook)
