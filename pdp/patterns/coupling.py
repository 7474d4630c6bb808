"""Which channels of a model can only go together: residual sums, norms, depthwise and grouped convolutions, heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.errors import Refusal
from pdp.patterns.attention import Attention, find_attentions
from pdp.patterns.traceable import traceable

# What torch-pruning calls the steps at which an attention multiplies channels with channels.
_PRODUCTS = ("ScaledDotProduct", "BmmBackward", "BaddbmmBackward")


@dataclass
class Part:
    """A module of a coupling; `units` holds the unit of each of its channels, -1 where a channel is of another one."""

    name: str
    module: nn.Module
    units: list[int]


@dataclass
class Coupling:
    """Channels that share a mask: `outputs` make them, `norms` carry them on, `inputs` read them."""

    units: int
    outputs: list[Part] = field(default_factory=list)
    norms: list[Part] = field(default_factory=list)
    inputs: list[Part] = field(default_factory=list)
    heads: str | None = None  # the attention whose heads are the units, the module that counts them
    refused: str | None = None  # why they must stay

    @property
    def name(self) -> str:
        """That of the first layer that makes the channels."""
        return self.outputs[0].name


def find_couplings(model: nn.Module, example_input: Any) -> list[Coupling]:
    """The couplings of a model in its own order, from torch-pruning's dependency graph and by attentions' heads.

    Leaves model and training mode as they were. Raises `Refusal` where torch-pruning is missing or cannot follow.
    """
    try:
        import torch_pruning
    except ImportError:
        raise Refusal(
            "channel pruning follows the model with torch-pruning, which is not installed: "
            "pip install 'pdp-pruning[export]' (or torch-pruning)"
        ) from None
    training = {module: module.training for module in model.modules()}
    attentions = list(find_attentions(model))
    try:
        with torch.enable_grad(), torch.random.fork_rng(), traceable(model):
            graph = torch_pruning.DependencyGraph().build_dependency(
                model, example_inputs=_arguments(example_input), verbose=False
            )
            couplings = [_head_coupling(model, one) for one in attentions]
            apart = [part.module for one in couplings for part in one.outputs]
            kinds = (_ConvNd, nn.Linear)
            for group in graph.get_all_groups(ignored_layers=apart, root_module_types=kinds):
                couplings.append(_read(group, model, torch_pruning.ops))
        for part in (part for one in couplings for part in (*one.outputs, *one.norms, *one.inputs)):
            part.module = model.get_submodule(part.name)
    except (AssertionError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refusal(f"torch-pruning cannot follow this model ({reason}): give prune=random or prune=nm") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    place = {name: index for index, (name, _) in enumerate(model.named_modules())}
    for one in couplings:
        one.outputs.sort(key=lambda part: place[part.name])
    return sorted(couplings, key=lambda one: place[one.name])


def _arguments(example_input: Any) -> Any:
    return (example_input,) if isinstance(example_input, Tensor) else example_input


def _read(group: Any, model: nn.Module, ops: Any) -> Coupling:
    """A coupling from torch-pruning's group over all channels of one layer."""
    names = {module: name for name, module in model.named_modules()}
    root = group[0].dep.target.module
    channels = root.weight.shape[1] if isinstance(root, _ConvTransposeNd) else root.weight.shape[0]
    parts: list[tuple[str, Any, list[int], list[int]]] = []
    refused = None
    for item in group.items:
        module, kind = item.dep.target.module, item.dep.target.type
        if kind in (ops.OPTYPE.CONV, ops.OPTYPE.LINEAR, ops.OPTYPE.DEPTHWISE_CONV):
            output = kind == ops.OPTYPE.DEPTHWISE_CONV or "out_channels" in item.dep.handler.__name__
            parts.append(("output" if output else "input", module, list(item.idxs), list(item.root_idxs)))
        elif kind == ops.OPTYPE.BN:
            parts.append(("norm", module, list(item.idxs), list(item.root_idxs)))
        elif kind == ops.OPTYPE.OUTPUT:
            refused = "its channels are the model's outputs"
        elif any(product in item.dep.target.name for product in _PRODUCTS):
            refused = "its channels are parts of heads, in an attention of a kind that is not known"
        elif isinstance(module, nn.Parameter):
            refused = "its channels meet a parameter of the model's own"
        elif kind in (ops.OPTYPE.LN, ops.OPTYPE.GN, ops.OPTYPE.IN, ops.OPTYPE.MHA, ops.OPTYPE.LSTM, ops.OPTYPE.EMBED):
            refused = f"its channels pass through {type(module).__name__}, whose result they change even as zeros"
    ties = _ties([module for kind, module, _, _ in parts if kind != "norm"])
    if channels % ties:
        refused, ties = refused or "its groups do not divide its channels", 1
    units = channels // ties
    coupling = Coupling(units, refused=refused)
    for kind, module, indices, roots in parts:
        length = _length(kind, module)
        table = [-1] * length
        for index, origin in zip(indices, roots, strict=True):
            table[index] = origin % units
        part = Part(names[module], module, table)
        getattr(coupling, f"{kind}s").append(part)
        if kind != "input" and -1 in table:
            coupling.refused = coupling.refused or f"only a part of {part.name} is coupled with it"
        if isinstance(module, _ConvTransposeNd):
            coupling.refused = coupling.refused or f"it is coupled with {part.name}, a transposed convolution"
    if not coupling.inputs:
        coupling.refused = coupling.refused or "its channels are the model's outputs"
    return coupling


def _ties(modules: list[Any]) -> int:
    """Into how many equal blocks grouped convolutions cut the channels: a unit is one channel of each block."""
    return max(
        (one.groups for one in modules if isinstance(one, _ConvNd) and one.groups != one.out_channels), default=1
    )


def _length(kind: str, module: Any) -> int:
    if kind == "norm":
        return int(module.num_features)
    if isinstance(module, nn.Linear):
        return int(module.out_features if kind == "output" else module.in_features)
    return int(module.out_channels if kind == "output" else module.in_channels)


def _head_coupling(model: nn.Module, attention: Attention) -> Coupling:
    heads = [index // attention.size for index in range(attention.heads * attention.size)]
    one = Coupling(attention.heads, heads=attention.counter)
    for maker in attention.makers:
        one.outputs.append(Part(maker, model.get_submodule(maker), heads * attention.blocks))
    one.inputs.append(Part(attention.reader, model.get_submodule(attention.reader), heads))
    return one


def input_columns(part: Part) -> list[int]:
    """The units of the slices along dimension 1 of a reader's weight; a grouped convolution has those of one group."""
    groups = part.module.groups if isinstance(part.module, _ConvNd) else 1
    return part.units[: len(part.units) // groups]


def slim_densities(couplings: list[Coupling], pruned: list[int]) -> dict[str, float]:
    """The share of its weights that each layer keeps without so many units of each coupling."""
    kept: dict[str, list[float]] = {}
    for one, count in zip(couplings, pruned, strict=True):
        for side, parts in enumerate((one.outputs, one.inputs)):
            for part in parts:
                own = sum(unit >= 0 for unit in part.units) / len(part.units)
                kept.setdefault(part.name, [1.0, 1.0])[side] -= own * count / one.units
    return {name: outputs * inputs for name, (outputs, inputs) in kept.items()}


def batch_norm(module: nn.Module) -> bool:
    """Whether this is a BatchNorm with weight and bias."""
    return isinstance(module, _BatchNorm) and module.weight is not None
