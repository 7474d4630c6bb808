"""What a prunable layer is: the weight of a convolution or linear layer, and the modules that use it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pdp.experts import expert_stacks, router_weights
from pdp.masks.host_cut import Trail
from pdp.reading_mode import reads_for_any_use
from pdp.sharded import is_sharded, whole


@dataclass(eq=False)
class Site:
    """A place where a weight is used: the attribute `parameter` of `module`, read while `caller` runs its forward.

    `index` is that of one matrix where the parameter is a stack of them, each with a mask of its own.
    """

    module: nn.Module
    parameter: str
    caller: nn.Module
    index: int | None = None
    turned: bool = False  # whether the weight is (in, out), where the module does not say so by its kind

    @property
    def stored(self) -> nn.Parameter:
        """The weight; of a stack its matrix, which shares memory, version and gradient with the parameter."""
        held = dict.__getitem__(self.module._parameters, self.parameter)  # asks nothing that may stand in for it
        return held if self.index is None else _matrix(held, self.index)  # type: ignore[return-value, arg-type]

    @property
    def parameter_held(self) -> nn.Parameter:
        """The parameter, the whole stack where it is one."""
        return dict.__getitem__(self.module._parameters, self.parameter)  # type: ignore[return-value]


@dataclass(eq=False)
class Member:
    """A tensor that a layer's mask applies to: its weight, or anything else that belongs to its units."""

    parameter: str  # its name in the model's state dict
    sites: list[Site]
    weighs: bool = True  # whether it is a convolution or linear weight, which counts as prunable
    units: Tensor | None = None  # the unit of each of its `rows`; None: the mask has the tensor's shape
    in_order: bool = False  # whether the units are 0, 1, 2, ..., so that a mask over units fits as it is
    axis: int = 0  # the dimension that indexes units; 1 for outputs of Hugging Face's `Conv1D`
    whole: bool = True  # whether each of its slices has a unit

    @property
    def stored(self) -> nn.Parameter:
        """The weight itself, perhaps one of which this process holds a part."""
        return self.sites[0].stored

    @property
    def tensor(self) -> nn.Parameter:
        """The stored tensor; of a sharded one all of it, gathered now, which is to be read alone."""
        return whole(self.stored)

    def rows(self, tensor: Tensor) -> Tensor:
        """`tensor`, shaped like this one, with its units along dimension 0; applying it twice restores the tensor."""
        return tensor.transpose(0, self.axis) if self.axis else tensor

    def compute_dtype(self, weight: Tensor) -> torch.dtype:
        """The dtype in which every use computes with the weight; the weight's own if they differ."""
        first = compute_dtype(self.sites[0], weight)
        return first if all(compute_dtype(site, weight) == first for site in self.sites[1:]) else weight.dtype


@dataclass(eq=False)
class Layer:
    """A prunable weight with its pruning state and its uses, or several weights that share one mask."""

    name: str
    kind: str
    parameter: str  # the weight's name in the model's state dict
    sites: list[Site]
    members: list[Member] = field(default_factory=list)
    units: int = 0
    least: int = 1  # units that always stay, whatever the budget
    final: int = 0  # units pruned at the target, set with the budget
    pruned: int = 0  # units pruned at present
    active: bool = False  # whether the effective weight differs from the stored one
    state: dict[str, Tensor] = field(default_factory=dict)  # of the method: a cut, a mask, ...
    hard_keep: Tensor | None = None  # set while the hard model is evaluated
    adapter: Any = None  # of low rank, added to the weight before the mask
    trail: Trail = field(default_factory=Trail)  # where its last cuts were
    was_read: bool = False  # whether its effective weight has been read since the last step
    last_gradient: tuple[int, int] | None = None  # id and version of the stored weight's gradient at the last step

    def __post_init__(self) -> None:
        if not self.members:
            self.members = [Member(self.parameter, self.sites)]

    @property
    def stored(self) -> nn.Parameter:
        """The weight itself, perhaps one of which this process holds a part."""
        site = self.sites[0]  # not by way of `site.stored`: a step asks this several times of every layer
        held = dict.__getitem__(site.module._parameters, site.parameter)
        return held if site.index is None else _matrix(held, site.index)  # type: ignore[return-value, arg-type]

    @property
    def stacked(self) -> bool:
        """Whether its weight is one matrix of a parameter that holds several."""
        return self.sites[0].index is not None

    @property
    def weight(self) -> nn.Parameter:
        """The stored weight, in its dense shape; of a sharded one all of it, gathered now and only to be read."""
        return whole(self.stored)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the weight."""
        return is_sharded(self.stored)

    def beside(self, weight: Tensor) -> Layer:
        """The layer with its state on the device of `weight` (the model, or a replica of it, may have moved)."""
        device = weight.device
        for value in self.state.values():
            if value.device != device:
                break
        else:
            return self
        state = {key: value.to(device) for key, value in self.state.items()}
        return replace(self, state=state, hard_keep=None if self.hard_keep is None else self.hard_keep.to(device))


def _matrix(stack: nn.Parameter, index: int) -> Tensor:
    """One matrix of a stack, outside of any graph."""
    one = stack.detach()[index]
    if stack.grad is not None:
        one.grad = stack.grad[index]
    return one


def input_axis(site: Site) -> int:
    """The dimension of the weight along which its inputs run."""
    return 0 if site.turned or is_conv1d(site.module) else 1


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is Hugging Face's `Conv1D`, a linear layer whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_weighted(module: nn.Module) -> bool:
    """Whether the module's `weight` is that of a convolution or linear layer."""
    return isinstance(module, (_ConvNd, nn.Linear)) or is_conv1d(module)


def compute_dtype(site: Site, weight: Tensor) -> torch.dtype:
    """The dtype in which the layer at `site` multiplies `weight`: autocast's if that would cast it, else its own.

    Writing the effective weight in this dtype saves autocast a pass over memory.
    """
    device = weight.device.type
    if torch.compiler.is_compiling() or weight.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return weight.dtype
    if reads_for_any_use():
        return weight.dtype
    read_by_itself = site.caller is site.module and site.parameter in ("weight", "bias")
    return torch.get_autocast_dtype(device) if read_by_itself and _casts_by_autocast(site.module) else weight.dtype


_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def _casts_by_autocast(module: nn.Module) -> bool:
    """Whether the module's forward uses its weight only in the standard operation of its type."""
    return "forward" not in module.__dict__ and _is_plain(type(module))  # type: ignore[arg-type]


def is_plain(module: nn.Module) -> bool:
    """Whether the module's class multiplies by its weight unchanged."""
    return _is_plain(type(module))  # type: ignore[arg-type]


@cache
def _is_plain(module: type) -> bool:
    if module.__name__ == "Conv1D":
        return module.__module__.startswith("transformers.")
    kind = next((kind for kind in _PLAIN if issubclass(module, kind)), None)
    own = ("forward", "_conv_forward")
    return kind is not None and all(getattr(module, one, None) is getattr(kind, one, None) for one in own)


def first_convolution(model: nn.Module) -> nn.Module | None:
    """The stem: the model's first weighted layer, if it is a convolution; else None."""
    first = next((module for module in model.modules() if is_weighted(module)), None)
    return first if isinstance(first, _ConvNd) else None


def weighted_sites(model: nn.Module) -> Iterator[tuple[str, str, Site]]:
    """Every convolution and linear weight: its layer's name, kind and place; experts' matrices each by itself.

    `nn.MultiheadAttention` reads its projections outside their own forward.
    """
    attention_outputs: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            attention_outputs[id(module.out_proj)] = module
            for parameter in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if module._parameters.get(parameter) is not None:
                    yield f"{name}.{parameter}".lstrip("."), "Linear", Site(module, parameter, module)
        elif is_weighted(module) and module._parameters.get("weight") is not None:
            kind = "Linear" if id(module) in attention_outputs else type(module).__name__
            yield name, kind, Site(module, "weight", attention_outputs.get(id(module), module))
        else:
            for key, turned in expert_stacks(module).items():
                if turned is not None:
                    prefix = name if key == "weight" else f"{name}.{key}".lstrip(".")
                    for index in range(len(module._parameters[key])):
                        yield f"{prefix}.{index}", "Expert", Site(module, key, module, index, turned)


def router_sites(model: nn.Module) -> Iterator[tuple[str, str, Site]]:
    """Weights that choose among experts and are no linear layer's: they multiply tokens as one does."""
    routers = router_weights(model)
    for _, module in model.named_modules():
        for key in module._parameters:
            if (id(module), key) in routers and not (key == "weight" and is_weighted(module)):
                yield routers[id(module), key], "Router", Site(module, key, module)
