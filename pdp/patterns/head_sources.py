"""An attention called once by itself: by which rows of its layers, and by what else, each number in it is made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pdp.layers import is_conv1d


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


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, Hugging Face's `Conv1D` among them."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


class Core:
    """One call of an attention, with noise in place of its layers' outputs, and zeros in the rows that are `gone`."""

    def __init__(self, module: nn.Module, called: Called, gone: set[tuple[str, int]] | None = None):
        self.leaves: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.twice: set[str] = set()
        self.parameters = {
            (name, key): value
            for name, one in module.named_modules()
            if not is_linear(one)
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
                if is_linear(one):
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
        return {(name, row) for name, slope in made.items() for row in along_axis(slope, slope.dim() - 1)}


def along_axis(slope: Tensor, axis: int) -> list[int]:
    """The places along an axis at which any number is not zero."""
    return (
        (slope.movedim(axis, 0).flatten(1) != 0).any(1).nonzero().flatten().tolist()
        if slope.dim() > 1
        else ((slope != 0).nonzero().flatten().tolist())
    )


def own_axis(slopes: list[Tensor], unit_of: list[int]) -> tuple[int, list[int]] | None:
    """The axis of a parameter along which each index belongs to one unit, and these units; None if there is none."""
    for axis in range(slopes[0].dim()):
        owner = [-1] * slopes[0].shape[axis]
        apart = True
        for head, slope in enumerate(slopes):
            for place in along_axis(slope, axis):
                apart = apart and owner[place] in (-1, unit_of[head])
                owner[place] = unit_of[head]
        if apart and len(set(owner) - {-1}) == max(unit_of) + 1:
            return axis, owner
    return None
