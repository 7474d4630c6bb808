"""Biases as products of integers add them: in the steps of the products, a norm behind them folded in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from pdp.layers import is_conv1d, is_plain
from pdp.quantize.points import Product

_FINE = 2**20  # steps in the bias of an output that has no weights


def foldable(products: Sequence[Product]) -> dict[int, _BatchNorm]:
    """The norm that can be folded into each convolution, by the convolution's id: both are called once, together."""
    times = Counter(id(one) for product in products for one in (product.module, product.norm) if one is not None)
    return {
        id(product.module): product.norm
        for product in products
        if isinstance(product.norm, _BatchNorm)
        and not isinstance(product.module, _ConvTransposeNd)
        and times[id(product.module)] == times[id(product.norm)] == 1
        and product.norm.running_var is not None
        and product.norm.bias is not None
        and (type(product.norm).__module__.startswith("torch.nn.") or type(product.norm).__name__ == "BatchNormAct2d")
    }


def folded(module: nn.Module, norm: _BatchNorm | None) -> tuple[Tensor | None, Tensor | None]:
    """What each output is multiplied by, and its bias, in float64; None for none."""
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach().double()
    if norm is None:
        return None, bias
    assert norm.running_var is not None and norm.running_mean is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight.detach().double()
    mean = norm.running_mean.double()
    return gain, norm.bias.detach().double() + ((-mean if bias is None else bias - mean) * gain)


def product_scales(scale: Tensor, gain: Tensor | None, empty: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """The scale of each output's weights with its norm's factor, float64; `inputs` is the scale of what they multiply.

    An output without weights (`empty`) has one in whose steps its bias is told to a millionth.
    """
    factors = scale.reshape(-1).double()
    factors = factors if gain is None else factors * gain.abs()
    if bias is not None:
        fine = bias.abs().clamp(min=1e-12) / (_FINE * inputs.double())
        factors = torch.where(empty | (factors == 0), fine, factors)
    return torch.where(factors == 0, torch.ones_like(factors), factors)


def in_steps(bias: Tensor, scale: Tensor) -> Tensor:
    """A bias as integers of 32 bits."""
    return torch.round(bias / scale).clamp(-(2**31), 2**31 - 1).to(torch.int32)


def _shipped_bias(
    module: nn.Module, norm: _BatchNorm | None, scale: Tensor, empty: Tensor, inputs: Tensor
) -> Tensor | None:
    """The module's bias, or its norm's, so that the sum is what the integers add; None where there is no bias."""
    gain, bias = folded(module, norm)
    if bias is None:
        return None
    steps = product_scales(scale, gain, empty, bias, inputs) * inputs.double()
    rounded = in_steps(bias, steps).double() * steps
    stored: Tensor = module.bias if norm is None else norm.bias  # type: ignore[assignment]
    return (stored.detach().double() + (rounded - bias)).to(stored.dtype)


def shipped_biases(
    model: nn.Module,
    norms: Mapping[str, str],
    weights: Mapping[str, Tensor],
    activations: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """By name the biases that integer products add, their own or those of the norms folded into them (`norms`).

    `weights` are scales by the weights' names, `activations` scales and zero points; a layer whose inputs are floats
    adds its bias as it is.
    """
    modules = dict(model.named_modules())
    found = {}
    for weight, scale in weights.items():
        place = weight.rpartition(".")[0]
        module: Any = modules[place]
        inputs = activations.get(f"{place}.input".lstrip("."))
        if inputs is None or not is_plain(module) or isinstance(module, _ConvTransposeNd):
            continue
        norm_name = norms.get(place)
        norm: Any = None if norm_name is None else modules[norm_name]
        empty = (module.weight.transpose(0, 1) if is_conv1d(module) else module.weight).flatten(1).eq(0).all(1)
        bias = _shipped_bias(module, norm, scale, empty, inputs[0])
        if bias is not None:
            found[f"{place if norm_name is None else norm_name}.bias".lstrip(".")] = bias
    return found
