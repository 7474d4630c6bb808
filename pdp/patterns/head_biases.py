"""Position biases that several attentions share: a separate parameter with a part for each head.

In T5 the first layer of a stack computes the bias for all its layers, in MPNet the encoder does. If an attention is
called with a tensor that has a part for each head, the parameter from which that tensor was computed, or the attention
that passed it on, tells which attentions belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pdp.layers import is_weighted
from pdp.patterns.coupling import Coupling, Vector
from pdp.patterns.heads import Called, Heads, coupling_of, own_axis

SLOPES = "its heads have biases that are no parameter's, made anew from their number"
APART = "its heads share biases with those of {}, which lie otherwise"

_Key = tuple[str, str]  # a module's name and the name of a parameter in it


@dataclass
class _Group:
    """Attentions that share a parameter."""

    heads: list[Heads] = field(default_factory=list)
    vector: Vector | None = None


def joined(model: nn.Module, found: list[Heads], call: Callable[[nn.Module, Any], Any], example: Any) -> list[Coupling]:
    """A coupling for the heads of each attention, or of all attentions that share a bias."""
    handed = [one for one in found if one.given and one.refused is None]
    if not handed:
        return [coupling_of(model, one) for one in found]
    groups: dict[_Key, _Group] = {}
    alone: list[Heads] = []
    sources = _sources(model, found, handed, call, example)
    for one in found:
        if not one.given or one.refused is not None:
            own = [*_vectors(one), (one.name, "")]
            shared = next((key for key in own if key in sources.values()), None)
        elif (shared := sources.get(one.name)) is None:
            alone.append(replace(one, refused=SLOPES))
            continue
        if shared is None:
            alone.append(one)
        else:
            groups.setdefault(shared, _Group()).heads.append(one)
    couplings = [coupling_of(model, one) for one in alone]
    return couplings + [_coupling(model, key, group.heads) for key, group in groups.items()]


def _vectors(one: Heads) -> list[_Key]:
    return [(f"{one.name}.{inner}".rstrip("."), key) for inner, key, _, _ in one.vectors]


def _coupling(model: nn.Module, key: _Key, heads: list[Heads]) -> Coupling:
    first, *others = [coupling_of(model, one) for one in heads]
    for one, coupling in zip(heads[1:], others, strict=True):
        if (
            one.columns[:: len(one.columns) // one.heads]
            != heads[0].columns[:: len(heads[0].columns) // heads[0].heads]
        ):
            first.refused = APART.format(one.name)
        first.outputs += coupling.outputs
        first.inputs += coupling.inputs
        first.vectors += coupling.vectors
        first.settings += coupling.settings
        first.refused = first.refused or coupling.refused
    name, parameter = key
    module = model.get_submodule(name)
    if parameter and not any((vector.name, vector.key) == key for vector in first.vectors):
        units = heads[0].columns[:: len(heads[0].columns) // heads[0].heads]
        tensor = module._parameters[parameter]
        axis = next(axis for axis, size in reversed(list(enumerate(tensor.shape))) if size == len(units))  # type: ignore[union-attr]
        first.vectors.append(Vector(name, module, parameter, axis, units, False))
    return first


def _sources(
    model: nn.Module, found: list[Heads], handed: list[Heads], call: Callable[[nn.Module, Any], Any], example: Any
) -> dict[str, _Key]:
    """By attention: the parameter whose parts, head by head, make its input, or the attention that passed it on."""
    wanted: dict[_Key, nn.Parameter] = {
        (name, key): value
        for name, module in model.named_modules()
        if not is_weighted(module)
        for key, value in module._parameters.items()
        if value is not None and value.dim() == 2 and value.is_floating_point()
    }
    biases: dict[str, list[tuple[Tensor, int, list[int]]]] = {}
    made: list[tuple[Tensor, str]] = []  # with the attention that made it

    def note(one: Heads) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            tensors = Called(args, kwargs).tensors
            biases.setdefault(one.name, [(tensors[place], axis, units) for place, axis, units in one.given])

        return hook

    def given_on(one: Heads) -> Callable[..., None]:
        return lambda _, inputs, output: made.extend((leaf, one.name) for leaf in tree_leaves(output))

    with ExitStack() as stack:
        for value in wanted.values():
            if not value.requires_grad:
                value.requires_grad_(True)
                stack.callback(value.requires_grad_, False)
        for one in found:
            stack.callback(model.get_submodule(one.name).register_forward_hook(given_on(one)).remove)
        for one in handed:
            handle = model.get_submodule(one.name).register_forward_pre_hook(note(one), with_kwargs=True)
            stack.callback(handle.remove)
        with torch.enable_grad():
            call(model, example)
        sources: dict[str, _Key] = {}
        for one in handed:
            if len(biases.get(one.name, ())) == 1:
                key = _source(*biases[one.name][0], wanted)
                maker = next((name for leaf, name in made if leaf is biases[one.name][0][0]), None)
                if key is not None or maker is not None:
                    sources[one.name] = key or (maker, "")  # type: ignore[assignment]
        return sources


def _source(bias: Tensor, axis: int, units: list[int], wanted: dict[_Key, nn.Parameter]) -> _Key | None:
    if not bias.requires_grad:
        return None
    slopes: dict[_Key, list[Tensor]] = {}
    for place in range(bias.shape[axis]):
        with torch.enable_grad():
            total = bias.select(axis, place).square().sum()
        own = torch.autograd.grad(total, list(wanted.values()), retain_graph=True, allow_unused=True)
        for key, slope in zip(wanted, own, strict=True):
            if slope is not None:
                slopes.setdefault(key, []).append(slope)
    found = [key for key, own in slopes.items() if len(own) == len(units) and own_axis(own, units) is not None]
    return found[0] if len(found) == 1 == len(slopes) else None
