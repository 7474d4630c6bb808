"""Finds the heads of attentions of any kind, from what each input of the output projection depends on.

Each attention is called once by itself, with noise in place of what its linear layers compute. The gradient of one
input of its last layer then shows which rows of which layers it depends on: all queries and keys of its head, and its
own value. So no list of layouts is needed: projections may be separate or fused, with heads one after the other or
query, key and value of each head together, with several queries per key, rotary pairs, or a latent space.
`pdp.patterns.proof` verifies the result.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from pdp.layers import is_conv1d
from pdp.patterns.coupling import Coupling, Part, Vector
from pdp.patterns.head_counts import find_settings

Call = Callable[[nn.Module, Any], Any]

UNCOUNTED = "its heads cannot go: no count of heads in {} could be changed so that it computes the same without some"


@dataclass
class Heads:
    """The heads of one attention, as units that can only be removed together."""

    name: str
    units: int
    heads: int
    rows: dict[str, list[int]]  # the unit of each row, by layer (relative to the attention)
    reader: str
    columns: list[int]
    vectors: list[tuple[str, str, int, list[int]]] = field(default_factory=list)  # module, parameter, axis, units
    settings: list[tuple[str, str, int]] = field(default_factory=list)  # module, attribute, its value per unit
    silent: bool = True  # whether a head's output is zero if its rows are
    # Arguments of the call with a part for each head: (position, axis, unit of each part).
    given: list[tuple[int, int, list[int]]] = field(default_factory=list)
    refused: str | None = None


@dataclass
class Called:
    """The arguments with which a module was called."""

    args: tuple
    kwargs: dict[str, Any]

    @property
    def form(self) -> tuple:
        """Which of the arguments were given."""
        return tuple(map(_form, self.args)), tuple((key, _form(value)) for key, value in self.kwargs.items())

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return [one for one in tree_leaves((self.args, self.kwargs)) if isinstance(one, Tensor)]

    def fresh(self) -> Called:
        """The same without a cache of past keys, and with detached tensors."""

        def one(value: Any) -> Any:
            return value.detach().clone() if isinstance(value, Tensor) else value

        rest = {key: None if "Cache" in type(value).__name__ else value for key, value in self.kwargs.items()}
        args = tuple(None if "Cache" in type(value).__name__ else value for value in self.args)
        return Called(tree_map(one, args), tree_map(one, rest))


def _form(value: Any) -> Any:
    return value.dim() if isinstance(value, Tensor) else type(value).__name__


def find_heads(model: nn.Module, call: Call, example: Any, known: set[str]) -> list[Heads]:
    """The heads of every attention that is called, except in the modules `known`; the model must be in evaluation mode.

    Of several attentions of the same kind only one is tried.
    """
    places = _candidates(model, known)
    if not places:
        return []
    calls = _calls(model, call, example, places)
    found: list[Heads] = []
    tried: dict[Any, Heads | None] = {}
    for name in sorted(places, key=lambda one: -one.count(".")):
        if name not in calls or any(one.name.startswith(f"{name}.") for one in found):
            continue
        module = model.get_submodule(name)
        kind = (_kind(module), calls[name].form)
        if kind not in tried:
            tried[kind] = _probe(module, calls[name])
        alike = tried[kind]
        if alike is not None:
            found.append(replace(alike, name=name))
    place = {name: index for index, (name, _) in enumerate(model.named_modules())}
    return sorted(found, key=lambda one: place[one.name])


def coupling_of(model: Any, heads: Heads) -> Coupling:
    """The coupling of these heads with all that belongs to them."""

    def part(inner: str, units: list[int]) -> Part:
        name = f"{heads.name}.{inner}"
        return Part(name, model.get_submodule(name), list(units))

    one = Coupling(heads.units, heads=heads.name, refused=heads.refused)
    one.outputs += [part(inner, units) for inner, units in heads.rows.items()]
    one.inputs.append(part(heads.reader, heads.columns))
    one.inputs[0].masked = not heads.silent
    for inner, key, axis, units in heads.vectors:
        name = f"{heads.name}.{inner}".rstrip(".")
        one.vectors.append(Vector(name, model.get_submodule(name), key, axis, list(units), False))
    one.settings += [(f"{heads.name}.{inner}".rstrip("."), key, size) for inner, key, size in heads.settings]
    return one


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _candidates(model: nn.Module, known: set[str]) -> list[str]:
    """The names of modules whose class is called an attention, with enough layers, and without known ones inside."""
    found = []
    for name, module in model.named_modules():
        if name and "att" in type(module).__name__.lower() and not isinstance(module, nn.MultiheadAttention):
            taken = any(one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.") for one in known)
            if not taken and sum(_linear(one) for one in module.modules()) > 1:
                found.append(name)
    return found


def _calls(model: nn.Module, call: Call, example: Any, names: list[str]) -> dict[str, Called]:
    """The arguments of the first call of each of these modules."""
    calls: dict[str, Called] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls.setdefault(name, Called(args, dict(kwargs)))

        return hook

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        call(model, example)
    return calls


def _kind(module: nn.Module) -> Any:
    """What distinguishes attentions whose heads may be laid out differently: classes, sizes and plain attributes."""
    parts = []
    for name, one in module.named_modules():
        shapes = tuple((key, tuple(value.shape)) for key, value in one._parameters.items() if value is not None)
        plain = {key: value for key, value in vars(one).items() if isinstance(value, (int, float, str, bool))}
        plain = {key: value for key, value in plain.items() if "layer" not in key and "idx" not in key}
        parts.append((name, type(one), shapes, tuple(sorted(plain.items()))))
    return tuple(parts)


class _Core:
    """One call of an attention, with noise in place of its layers' outputs, and zeros in the rows that are `gone`."""

    def __init__(self, module: nn.Module, called: Called, gone: set[tuple[str, int]] | None = None):
        self.leaves: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.twice: set[str] = set()
        self.parameters = {
            (name, key): value
            for name, one in module.named_modules()
            if not _linear(one)
            for key, value in one._parameters.items()
            if value is not None and value.is_floating_point()
        }
        frozen = [one for one in self.parameters.values() if not one.requires_grad]
        generator = torch.Generator().manual_seed(0)

        def made(name: str) -> Callable[..., Tensor]:
            def hook(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
                if name in self.leaves:
                    self.twice.add(name)
                noise = torch.randn(output.shape, generator=generator).to(output)
                noise[..., [row for one, row in gone or () if one == name]] = 0
                self.leaves[name], self.reads[name] = noise.requires_grad_(), inputs[0]
                return self.leaves[name].clone()  # a clone, because the module may write to it

            return hook

        with ExitStack() as stack:
            for one in frozen:
                one.requires_grad_(True)
                stack.callback(one.requires_grad_, False)
            for name, one in module.named_modules():
                if _linear(one):
                    stack.callback(one.register_forward_hook(made(name)).remove)
            own = called.fresh()
            self.given = {index: one for index, one in enumerate(own.tensors) if one.is_floating_point()}
            for one in self.given.values():
                one.requires_grad_()
            with torch.enable_grad():
                module(*own.args, **own.kwargs)

    def sources(self, values: Tensor) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Gradients of the randomly weighted sum of `values`, first by layer, second by anything else they depend on.

        Something else is another parameter, by its module's and its own name, or an argument, by its position.
        """
        weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).to(values)
        wanted: list[tuple[Any, Tensor]] = [*self.leaves.items(), *self.parameters.items(), *self.given.items()]
        with torch.enable_grad():
            total = (values * weights).sum()
        slopes = torch.autograd.grad(total, [one for _, one in wanted], retain_graph=True, allow_unused=True)
        some = [(key, slope) for (key, _), slope in zip(wanted, slopes, strict=True) if slope is not None]
        return (
            {key: one for key, one in some if isinstance(key, str)},
            {key: one for key, one in some if not isinstance(key, str)},
        )

    def rows(self, values: Tensor) -> set[tuple[str, int]]:
        """The rows of layers on which these values depend."""
        made, _ = self.sources(values)
        return {(name, row) for name, slope in made.items() for row in _along(slope, slope.dim() - 1)}


def _along(slope: Tensor, axis: int) -> list[int]:
    return (
        (slope.movedim(axis, 0).flatten(1) != 0).any(1).nonzero().flatten().tolist()
        if slope.dim() > 1
        else ((slope != 0).nonzero().flatten().tolist())
    )


def _probe(module: nn.Module, called: Called) -> Heads | None:
    """The heads of an attention; None if its structure is not understood."""
    try:
        core = _Core(module, called)
        reader = next(
            (name for name in reversed(core.reads) if core.reads[name].requires_grad and name not in core.twice), None
        )
        if reader is None:
            return None
        values = core.reads[reader]
        with torch.enable_grad():
            size = _head_size(core, values)
            heads = None if size is None else _assemble(module, called, core, reader, size)
    except Exception:  # an unknown module may raise anything when it is called by itself
        return None
    if heads is None:
        return None
    own = called.fresh()

    def run(one: nn.Module, gone: set[int]) -> Any:
        parts = {
            place: (axis, [index for index, unit in enumerate(units) if unit not in gone])
            for place, axis, units in heads.given
        }
        leaves, form = tree_flatten((own.args, own.kwargs))
        places = iter(range(len(leaves)))
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and (place := next(places)) in parts:
                axis, kept = parts[place]
                leaves[index] = leaf.index_select(axis, torch.tensor(kept))
        args, kwargs = tree_unflatten(leaves, form)
        return one(*args, **kwargs)

    settings = find_settings(module, coupling_of(_Inside(module), heads), run)
    if settings is None:
        heads.refused = UNCOUNTED.format(type(module).__name__)
    else:
        heads.settings = settings
    return heads


class _Inside:
    """Presents an attention as a model that contains it under the empty name."""

    def __init__(self, module: nn.Module):
        self.module = module

    def get_submodule(self, name: str) -> nn.Module:
        """The submodule with this name, which begins with a dot."""
        return self.module.get_submodule(name.strip("."))


def _head_size(core: _Core, values: Tensor) -> int | None:
    """The number of inputs of the last layer per head: neighbours within a head share queries and keys."""
    width = values.shape[-1]
    if width < 2:
        return None
    first = core.rows(values[..., 0])
    shared = len(first & core.rows(values[..., 1]))
    if not shared:
        return None
    low, high = 1, width  # bounds of the search: still the same head, no longer the same
    while high - low > 1:
        middle = (low + high) // 2
        alike = len(first & core.rows(values[..., middle])) >= shared
        low, high = (middle, high) if alike else (low, middle)
    return high if high < width and width % high == 0 else None


def _assemble(module: nn.Module, called: Called, core: _Core, reader: str, size: int) -> Heads | None:
    """Makes the units: heads that share a row of a layer form one unit, unless all heads share that row."""
    values = core.reads[reader]
    count = values.shape[-1] // size
    touched: dict[tuple[str, int], set[int]] = {}
    others: dict[Any, list[Tensor]] = {}
    for head in range(count):
        made, more = core.sources(values[..., head * size : (head + 1) * size])
        for name, slope in made.items():
            for row in _along(slope, slope.dim() - 1):
                touched.setdefault((name, row), set()).add(head)
        for key, slope in more.items():
            others.setdefault(key, [torch.zeros_like(slope)] * count)[head] = slope
    unit_of = _joined(count, [heads for heads in touched.values() if len(heads) < count])
    units = max(unit_of) + 1
    if units < 2 or len({unit_of.count(unit) for unit in range(units)}) > 1:
        return None
    rows: dict[str, list[int]] = {}
    for name, leaf in core.leaves.items():
        own = [touched.get((name, row), set()) for row in range(leaf.shape[-1])]
        held = [unit_of[min(heads)] if heads and len(heads) < count else -1 for heads in own]
        if max(held) >= 0:
            rows[name] = held
    columns = [unit_of[column // size] for column in range(count * size)]
    one = Heads("", units, count, rows, reader, columns)
    for key, slopes in others.items():
        apart = own_axis(slopes, unit_of)
        if apart is not None:
            one.given.append((key, *apart)) if isinstance(key, int) else one.vectors.append((*key, *apart))
    gone = {(name, row) for name, held in rows.items() for row, unit in enumerate(held) if unit == 0}
    silenced = _Core(module, called, gone).reads[reader]
    one.silent = not bool(silenced[..., [index for index, unit in enumerate(columns) if unit == 0]].any())
    return one


def _joined(count: int, sets: list[set[int]]) -> list[int]:
    leader = list(range(count))

    def root(one: int) -> int:
        while leader[one] != one:
            one = leader[one]
        return one

    for some in sets:
        first = root(min(some))
        for one in some:
            leader[max(root(one), first)] = min(root(one), first)
            first = root(first)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(one), len(numbers)) for one in range(count)]


def own_axis(slopes: list[Tensor], unit_of: list[int]) -> tuple[int, list[int]] | None:
    """The axis of a parameter along which each index belongs to one unit, and these units; None if there is none."""
    for axis in range(slopes[0].dim()):
        owner = [-1] * slopes[0].shape[axis]
        apart = True
        for head, slope in enumerate(slopes):
            for place in _along(slope, axis):
                apart = apart and owner[place] in (-1, unit_of[head])
                owner[place] = unit_of[head]
        if apart and len(set(owner) - {-1}) == max(unit_of) + 1:
            return axis, owner
    return None
