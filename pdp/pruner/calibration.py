"""Prunes block by block on calibration samples: each block is pruned with the outputs of the pruned ones before it.

For every block the samples run through the model again, up to that block. So memory holds the statistics of one block
and the forward of one batch, however many samples there are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods.calibrated import CalibratedMethod, Statistics, inputs_of
from pdp.pruner.budget import fix_budget
from pdp.pruner.parts import Parts, check_alive
from pdp.spoken import python_words

Forward = Callable[[Any], Any]


class _Reached(Exception):
    """Raised to end a forward after the block whose inputs are collected."""


def prune_calibrated(pruner: Parts, batches: Iterable[Any], forward: Forward | None) -> int:
    """`Pruner.calibrate`."""
    check_alive(pruner)
    method = pruner.method
    with python_words():
        if not isinstance(method, CalibratedMethod):
            raise Refusal(
                f"method={method.options.name} takes no calibration samples: give method=wanda or method=sparsegpt"
            )
        pruner.guard.check_places()
        pruner.guard.check_numbers()
        fix_budget(pruner)
        for layer in pruner.layers:
            layer.pruned, layer.active = layer.final, False
        wanted = [layer for layer in pruner.layers if layer.final]
        samples = calibrate(pruner.model, wanted, method, batches, forward)
    pruner.fraction = method.fraction = 1.0
    return samples


@torch.no_grad()
def calibrate(
    model: nn.Module, layers: Sequence[Layer], method: CalibratedMethod, batches: Iterable[Any], forward: Forward | None
) -> int:
    """Prunes `pruned` units of every layer by the method, block by block in the order in which the model computes them.

    A batch is a tensor, a tuple of arguments or a dict of keyword arguments; padding does not count if there is an
    `attention_mask`, (N, tokens). `forward` replaces the normal way to run a batch. Returns the number of samples.
    Raises `Refusal` if there are none.
    """
    batches = list(batches)
    run = forward or _runner(model)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        samples = sum(_size(batch) for batch in batches)
        if not samples:
            raise Refusal(
                f"method={method.options.name} has no calibration samples: give at least one batch of what the "
                "model takes"
            )
        blocks, calls = _in_order(model, layers, lambda: run(batches[0]))
        for block, own in blocks:
            found = _statistics(model, own, method, batches, run, (block, calls.get(block, 0)))
            unseen = [layer.name for layer in own if found[layer.name] is None]
            if unseen:
                warnings.warn(
                    f"no calibration sample reaches {unseen[0]}{f' and {len(unseen) - 1} more' * (len(unseen) > 1)}, "
                    "pruned by magnitude",
                    stacklevel=5,
                )
            for layer in own:
                method.compress(layer, found[layer.name])
                layer.active = True
    finally:
        for module, was in training.items():
            module.training = was
    return samples


def block_of(model: nn.Module, name: str) -> str:
    """The block of a layer: the member of the outermost list or Sequential that contains it, else the layer itself."""
    parts = name.split(".")
    for depth in range(len(parts)):
        around = model.get_submodule(".".join(parts[:depth]))
        if isinstance(around, nn.ModuleList | nn.Sequential) and depth < len(parts):
            return ".".join(parts[: depth + 1])
    return name


def _in_order(
    model: nn.Module, layers: Sequence[Layer], run: Callable[[], Any]
) -> tuple[list[tuple[str, list[Layer]]], dict[str, int]]:
    """Blocks with their layers, in the order in which a forward first enters them, and how often it enters each."""
    own: dict[str, list[Layer]] = {}
    for layer in layers:
        own.setdefault(block_of(model, layer.name), []).append(layer)
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def entered(module: nn.Module, inputs: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return entered

    handles = [model.get_submodule(name).register_forward_pre_hook(count(name)) for name in own]
    with _removed(handles):
        run()
    order = [*calls, *(name for name in own if name not in calls)]
    return [(name, own[name]) for name in order], calls


def _statistics(
    model: nn.Module,
    layers: Sequence[Layer],
    method: CalibratedMethod,
    batches: Sequence[Any],
    run: Forward,
    stop: tuple[str, int],
) -> dict[str, Statistics | None]:
    """Each layer's statistics over all batches; a forward ends when the block has been left as often as `stop` says."""
    found: dict[str, Statistics | None] = {layer.name: None for layer in layers}
    block, calls = stop
    real: list[Tensor | None] = [None]
    left = [0]

    def gather(layer: Layer) -> Callable[..., None]:
        def seen(module: nn.Module, inputs: Any, keywords: Any) -> None:
            given = inputs[0] if inputs else next(iter(keywords.values()))
            mask = real[0]
            if mask is not None and given.dim() > 2 and given.shape[:2] == mask.shape:
                given = given[mask.to(given.device)]
            statistics = found[layer.name] = found[layer.name] or method.statistics(layer)
            statistics.add(inputs_of(module, given.detach()))

        return seen

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        left[0] += 1
        if left[0] == calls:
            raise _Reached

    handles = [
        site.module.register_forward_pre_hook(gather(layer), with_kwargs=True)
        for layer in layers
        for site in layer.sites
    ]
    # Ends a batch early, provided that every batch enters the block as often as the first; a layer may be its own
    # block.
    if calls:
        handles.append(model.get_submodule(block).register_forward_hook(leave))
    with _removed(handles):
        for batch in batches:
            real[0], left[0] = _mask_of(batch), 0
            with suppress(_Reached):
                run(batch)
    return found


@contextmanager
def _removed(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runner(model: nn.Module) -> Forward:
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else None

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    def run(batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return model(**{key: there(value) for key, value in batch.items()})
        if isinstance(batch, tuple | list):
            return model(*map(there, batch))
        return model(there(batch))

    return run


def _mask_of(batch: Any) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _size(batch: Any) -> int:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    return next((len(one) for one in values if isinstance(one, Tensor) and one.dim()), 0)
