"""The hard model: exact zeros, computed with for a while, stored for a while, or written for good."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pdp.pruner import adapters, progress
from pdp.pruner.guard import more_zeros
from pdp.pruner.parts import Parts, check_alive
from pdp.pruner.shadow import unhook
from pdp.sharded import whole, write


@contextmanager
def hard_masks(pruner: Parts) -> Iterator[None]:
    """`Pruner.hard`."""
    if pruner.method.prunes and not pruner.finished:
        pruner.guard.check_places()
        pruner.guard.check_numbers()
    with torch.no_grad():
        pruner.method.settle(pruner.layers)
        for layer in pruner.layers:
            layer.hard_keep = pruner.method.keep(layer) if layer.active else None
    try:
        yield
    finally:
        for layer in pruner.layers:
            layer.hard_keep = None


@contextmanager
def baked_weights(pruner: Parts, model: nn.Module) -> Iterator[None]:
    """`Pruner.baked`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        pruner.method.settle(pruner.layers)
        members = [(layer, member) for layer in pruner.layers if layer.active for member in layer.members]
        adapted = [layer for layer in pruner.layers if layer.adapter is not None]
        names = {member.parameter for _, member in members} | {layer.parameter for layer in adapted}
        stored = {name: parameters[name].clone() for name in names}
        keeps = {layer.name: pruner.method.keep(layer) for layer in pruner.layers if layer.active}
        for layer in adapted:
            parameters[layer.parameter].copy_(layer.adapter.added(parameters[layer.parameter]))
        for layer, member in members:
            index = member.sites[0].index
            parameter = parameters[member.parameter] if index is None else parameters[member.parameter][index]
            write(parameter, pruner.method.hard_weight(layer, whole(parameter), keeps[layer.name], member))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in stored.items():
                parameters[name].copy_(weight)


def finalize(pruner: Parts) -> None:
    """`Pruner.finalize`."""
    check_alive(pruner)
    if pruner.method.prunes:
        with torch.no_grad():
            _write_zeros(pruner)
    release(pruner)
    freeze(pruner)
    pruner.finished = True


def release(pruner: Parts) -> None:
    """Removes every hook from the model."""
    unhook(pruner.hooked_layers, pruner.handles, pruner.quantizer)
    if pruner.method.prunes:
        pruner.guard.remove()


def freeze(pruner: Parts) -> None:
    """Keeps the scales of the quantized model in `frozen`."""
    pruner.frozen = pruner.quantizer.freeze(pruner.model) if pruner.quantizer is not None else None


def _write_zeros(pruner: Parts) -> None:
    """Prunes to the target and writes the hard weights into the model, whose hooks are still there."""
    pruner.guard.check_places()
    pruner.guard.check_numbers()
    if pruner.fraction < 1 and pruner.epochs:
        warnings.warn(
            f"finalize() at {pruner.fraction:.0%} of the target: the rest is pruned now, untrained", stacklevel=4
        )
    progress.end(pruner)
    pruner.method.settle(pruner.layers)
    adapters.merge(pruner.layers)
    keeps = [(layer, pruner.method.keep(layer)) for layer in pruner.layers if layer.active]
    for layer, keep in keeps:
        for member in layer.members:
            write(member.stored, pruner.method.hard_weight(layer, member.tensor, keep, member))
    for layer, keep in keeps:
        pruner.pattern.finish(pruner.model, layer, keep)
    if more := more_zeros(pruner.layers):
        warnings.warn(more, stacklevel=4)
