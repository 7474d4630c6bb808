"""Which weights of a model are quantized, and where activations are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.errors import Refusal
from pdp.layers import Site, is_conv1d, weighted_sites
from pdp.zeros import why_zeros_are_lost


@dataclass(eq=False)
class WeightPoint:
    """A quantized weight: its name in the state dict, the modules that use it, and the dimension of its outputs."""

    parameter: str
    sites: list[Site]
    axis: int = 0

    @property
    def tensor(self) -> nn.Parameter:
        """The stored tensor."""
        site = self.sites[0]
        return site.module._parameters[site.parameter]  # type: ignore[return-value]


@dataclass(eq=False)
class ActivationPoint:
    """The input or output of a module: one tensor with one range. `name` ends in .input or .output."""

    name: str
    module: nn.Module
    outputs: bool = False


@dataclass(eq=False)
class Product:
    """A convolution in the model's graph, the norm that alone reads its result, and whether quantized layers alone
    read what comes of both."""

    module: nn.Module
    norm: nn.Module | None
    read_quantized: bool


def find_weights(model: nn.Module, exclude: Sequence[str] = ()) -> tuple[list[WeightPoint], dict[str, str]]:
    """The convolution and linear weights in the model's order, and by name why others stay floats.

    Raises `Refusal` for a pattern that matches no layer, and if no weight is left.
    """
    sites = list(weighted_sites(model))
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name, _, _ in sites):
            raise Refusal(f"quantize.exclude={pattern} matches no convolution or linear layer of the model")
    own = {(id(site.module), site.parameter) for _, _, site in sites}
    outside = {
        id(tensor): name
        for name, module in model.named_modules()
        for key, tensor in module._parameters.items()
        if tensor is not None and (id(module), key) not in own
    }
    found: dict[int, WeightPoint] = {}
    reasons: dict[str, str] = {}
    for name, _, site in sites:
        weight = site.module._parameters[site.parameter]
        if weight is None:
            continue
        if id(weight) in found:
            found[id(weight)].sites.append(site)
            continue
        excluded = next((one for one in exclude if fnmatchcase(name, one)), None)
        if excluded is not None:
            reasons[name] = f"excluded by {excluded}"
        elif site.index is not None:
            reasons[name] = "one parameter holds it and other experts' weights"
        elif id(weight) in outside:
            reasons[name] = f"tied to {outside[id(weight)]}, which is no convolution's or linear layer's"
        elif not weight.is_floating_point() or not weight.numel() or weight.is_meta:
            reasons[name] = "no floating-point numbers"
        elif site.parameter == "weight" and (reason := why_zeros_are_lost(site.module)):
            reasons[name] = reason
        else:
            parameter = f"{name}.weight".lstrip(".") if site.parameter == "weight" else name
            found[id(weight)] = WeightPoint(parameter, [site], output_axis(site.module))
    if not found:
        said = "; ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:3])
        raise Refusal(f"nothing of the model can be quantized: {said or 'it has no convolution or linear layer'}")
    return list(found.values()), reasons


def output_axis(module: nn.Module) -> int:
    """The dimension of a module's weight that indexes its outputs."""
    return 1 if is_conv1d(module) or isinstance(module, _ConvTransposeNd) else 0


def find_activations(
    model: nn.Module, weights: Sequence[WeightPoint], products: Sequence[Product] = ()
) -> list[ActivationPoint]:
    """The inputs of all modules with quantized weights, and the outputs of convolutions that nothing else quantizes.

    An integer convolution gives integers: where its result, behind its norm, is read by anything but a quantized layer
    (a residual sum, a pool), it has a range of its own. `products` are `find_products`' and show where that is.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, ActivationPoint] = {}
    for weight in weights:
        for site in weight.sites:
            # If another module reads the weight, as attention reads its projections', the module itself is not called.
            if site.caller is site.module and site.parameter == "weight":
                name = f"{names[id(site.module)]}.input".lstrip(".")
                found.setdefault(name, ActivationPoint(name, site.module))
    for product in products:
        module = product.norm or product.module
        name = f"{names[id(module)]}.output".lstrip(".")
        if not product.read_quantized:
            found.setdefault(name, ActivationPoint(name, module, outputs=True))
    return list(found.values())


_PASSING = frozenset(
    ("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "clamp", "clamp_", "dropout", "dropout_")
    + ("contiguous", "clone", "alias", "detach", "view", "reshape", "flatten")
)


def find_products(model: nn.Module, weights: Sequence[WeightPoint], example_input: Any) -> list[Product]:
    """Every call of a quantized convolution, in order; none of a model that cannot be followed."""
    if example_input is None or not any(isinstance(weight.sites[0].module, _ConvNd) for weight in weights):
        return []
    program = exported(model, example_input)
    if program is None:
        return []
    by_name = dict(model.named_modules())
    parameters = program.graph_signature.inputs_to_parameters
    known = dict(model.named_parameters(remove_duplicate=False))
    modules = {
        id(site.module._parameters["weight"]): site.module
        for weight in weights
        for site in weight.sites
        if site.parameter == "weight"
    }

    def layer_of(node: Any) -> nn.Module | None:
        """The quantized module whose weight a product uses; None for other products."""
        operands = [getattr(one, "name", "") for one in node.args[1:2]]
        name = next((parameters[one] for one in operands if one in parameters), None)
        return modules.get(id(known.get(name))) if name else None

    found = []
    for node in program.graph.nodes:
        module = layer_of(node) if node.op == "call_function" and "conv" in str(node.target) else None
        if not isinstance(module, _ConvNd):
            continue
        end, norm = node, None
        reader = next(iter(node.users), None)
        if reader is not None and len(node.users) == 1 and "batch_norm" in str(reader.target):
            name = parameters.get(getattr(reader.args[1], "name", ""))
            norm = by_name.get(name.rpartition(".")[0]) if name else None
            end = reader if norm is not None else node
        while len(end.users) == 1 and _passes(next(iter(end.users))):
            end = next(iter(end.users))
        readers = list(end.users)
        quantized = bool(readers) and all(layer_of(one) is not None and one.args[0] is end for one in readers)
        found.append(Product(module, norm, quantized))
    return found


def _passes(node: Any) -> bool:
    return node.op == "call_function" and str(node.target).partition(".")[2].partition(".")[0] in _PASSING


def exported(model: nn.Module, example_input: Any) -> Any:
    """The model's graph in evaluation mode; None if it cannot be exported."""
    keywords = example_input if isinstance(example_input, dict) else {}
    arguments: tuple[Tensor, ...] = ()
    if not keywords:
        arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            return torch.export.export(model, arguments, keywords, strict=False)
    except Exception:  # export may raise anything; the model is trained without its graph
        return None
    finally:
        for module, mode in modes:
            module.training = mode
