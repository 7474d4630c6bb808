"""A model as torch-pruning can follow it, which knows neither Hugging Face's `Conv1D` nor a cache of past keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from pdp.layers import is_conv1d


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Inside, a linear layer that computes the same stands wherever the model has a `Conv1D`, and nothing is cached."""
    settings: Any = getattr(model, "config", None)
    cached = getattr(settings, "use_cache", None)
    named = model.named_modules(remove_duplicate=False)
    found = [(name, module) for name, module in named if name and is_conv1d(module)]
    try:
        if cached:
            settings.use_cache = False
        for name, module in found:
            _put(model, name, _linear(module))
        yield
    finally:
        if cached:
            settings.use_cache = cached
        for name, module in found:
            _put(model, name, module)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    model.get_submodule(parent)._modules[key] = module


def _linear(module: nn.Module) -> nn.Linear:
    weight, bias = module._parameters["weight"], module._parameters["bias"]
    assert weight is not None
    linear = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach().t()), bias  # type: ignore[assignment]
    return linear
