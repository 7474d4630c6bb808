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
from torch.utils._pytree import tree_flatten, tree_unflatten

from pdp.patterns.coupling import Coupling, Part, Vector
from pdp.patterns.head_counts import find_settings
from pdp.patterns.head_sources import Called, Core, along_axis, is_linear, own_axis

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


def _candidates(model: nn.Module, known: set[str]) -> list[str]:
    """The names of modules whose class is called an attention, with enough layers, and without known ones inside."""
    found = []
    for name, module in model.named_modules():
        if name and "att" in type(module).__name__.lower() and not isinstance(module, nn.MultiheadAttention):
            taken = any(one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.") for one in known)
            if not taken and sum(is_linear(one) for one in module.modules()) > 1:
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


def _probe(module: nn.Module, called: Called) -> Heads | None:
    """The heads of an attention; None if its structure is not understood."""
    try:
        core = Core(module, called)
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


def _head_size(core: Core, values: Tensor) -> int | None:
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


def _assemble(module: nn.Module, called: Called, core: Core, reader: str, size: int) -> Heads | None:
    """Makes the units: heads that share a row of a layer form one unit, unless all heads share that row."""
    values = core.reads[reader]
    count = values.shape[-1] // size
    touched: dict[tuple[str, int], set[int]] = {}
    others: dict[Any, list[Tensor]] = {}
    for head in range(count):
        made, more = core.sources(values[..., head * size : (head + 1) * size])
        for name, slope in made.items():
            for row in along_axis(slope, slope.dim() - 1):
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
    silenced = Core(module, called, gone).reads[reader]
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
