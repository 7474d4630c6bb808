"""Hooks that quantize the inputs or outputs of a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ActivationHook:
    """The hook for one activation; `change` gets a tensor and whether the module trains. Deep copies share it."""

    def __init__(self, change: Callable[[Tensor, bool], Tensor]):
        self.change = change

    def __deepcopy__(self, memo: dict[int, Any]) -> ActivationHook:
        return self

    def attach(self, module: nn.Module, outputs: bool) -> RemovableHandle:
        """Registers the hook for the module's output, or for the first tensor of its input."""
        if outputs:
            return module.register_forward_hook(self.after)
        return module.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Quantizes the module's input."""
        if arguments and isinstance(arguments[0], Tensor):
            changed = self.change(arguments[0], module.training)
            return None if changed is arguments[0] else ((changed, *arguments[1:]), keywords)
        for name, value in keywords.items():
            if isinstance(value, Tensor):
                return arguments, {**keywords, name: self.change(value, module.training)}
        return None

    def after(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Quantizes the module's output."""
        return self.change(output, module.training) if isinstance(output, Tensor) else None
