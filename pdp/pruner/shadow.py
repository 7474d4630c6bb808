"""Forward hooks that let a layer compute with another weight than the one it stores.

The effective weight lies in the module's `__dict__`, where attribute look-up finds it before the Parameter, and only
while the module's forward runs. Optimizers, state dicts, DDP, deep copies and averages never see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pdp.layers import Layer, Member, Site
from pdp.methods.method import Method

# Whether torch.compile follows a deletion from a module's `__dict__`: PyTorch 2.14 does, 2.11 breaks there.
_DELETIONS_COMPILE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)


class Shadow:
    """The pair of hooks of one place that uses a weight. A deep copy of the model shares the layer's live state."""

    def __init__(self, layer: Layer, member: Member, site: Site, method: Method):
        self.layer = layer
        self.member = member
        self.method = method
        # A path instead of the module itself: in a deep copy the hook must act on the copy.
        self.inner = next(name for name, module in site.caller.named_modules() if module is site.module)
        self.parameter = site.parameter

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
        layer = self.layer
        if not layer.active:
            return
        module = caller.get_submodule(self.inner) if self.inner else caller
        # What another coupling's mask has made of it already.
        weight = module.__dict__.get(self.parameter, module._parameters[self.parameter])
        assert weight is not None
        if layer.hard_keep is not None:
            effective = self.method.hard_weight(layer, weight, layer.hard_keep, self.member)
        else:
            effective = self.method.effective_weight(layer, weight, self.member)
        module.__dict__[self.parameter] = effective

    def take(self, caller: nn.Module, inputs: Any, output: Any) -> None:
        """Takes it out again."""
        module = caller.get_submodule(self.inner) if self.inner else caller
        if torch.compiler.is_compiling() and not _DELETIONS_COMPILE:
            # The stored weight itself hides nothing, and the next one to be put replaces it.
            if self.parameter in module.__dict__:
                module.__dict__[self.parameter] = module._parameters[self.parameter]
        else:
            module.__dict__.pop(self.parameter, None)


def uncover(site: Site) -> None:
    """Leaves nothing in front of the stored weight there."""
    site.module.__dict__.pop(site.parameter, None)


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
        if model is self.model and not torch.compiler.is_compiling():
            self.method.begin_forward(self.layers)

    def end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """It has ended."""
        if model is self.model:
            self.method.end_forward()


def guard_hooks() -> None:
    """Makes torch.compile look at hooks before it takes a graph that it has made.

    By default it does not, and the graph of a dense model stands in for a pruned one of the same class, which then
    trains without its masks and says nothing. Graphs made so far lack that look and are dropped, once in a process.
    """
    import torch._dynamo

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()
