"""A quantized model whose weights are stored as integers, for formats that keep them so: QDQ graphs and programs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pdp.layers import is_conv1d, is_plain
from pdp.quantize.bias import foldable, folded, in_steps, product_scales
from pdp.quantize.frozen import Frozen
from pdp.quantize.points import find_products, find_weights

OPSET = 21  # of ONNX: the first whose DequantizeLinear takes 4 bits


def with_integers(model: nn.Module, frozen: Frozen, example_input: Any, onnx: bool) -> nn.Module:
    """A copy of the plain hard `model` that computes as `frozen.applied` does, from integers.

    Norms that alone read a convolution are folded into its scales and bias, which changes nothing: a scale of its own
    for each output takes the norm's factor. `onnx` writes QuantizeLinear and DequantizeLinear, which only an ONNX
    exporter understands, else plain operations of torch. Weights that something else than their module reads, such as
    attention's projections, stay floats on their grid.
    """
    made = copy.deepcopy(model).eval()
    weights = [one for one in find_weights(made)[0] if one.parameter in frozen.weights]
    products = find_products(made, weights, example_input)
    names = {id(module): name for name, module in made.named_modules()}
    norms = {
        key: norm
        for key, norm in foldable(products).items()
        if not frozen.activations or f"{names[id(norm)]}.bias".lstrip(".") in frozen.biases
    }
    parameters = dict(made.named_parameters(remove_duplicate=False))
    replaced: dict[str, nn.Module] = {}
    for weight in weights:
        tensor = parameters[weight.parameter]
        on_grid = frozen.weight(weight.parameter, tensor)
        integers = frozen.integers(weight.parameter, tensor.detach())
        scale = frozen.weights[weight.parameter]
        for site in weight.sites:
            module = site.module
            name = names[id(module)]
            if site.caller is not module or not is_plain(module) or isinstance(module, _ConvTransposeNd):
                continue
            activation = frozen.activations.get(f"{name}.input")
            outside = Grid(*activation, onnx=onnx) if activation else None
            if isinstance(module, _ConvNd):
                replaced[name] = Convolution(module, integers, scale, outside, norms.get(id(module)), onnx)
            else:
                replaced[name] = Linear(module, integers, scale, outside, onnx)
        with torch.no_grad():
            tensor.copy_(on_grid)  # where it stays
    for norm in norms.values():
        # timm's norm with its activation; of torch's own nothing is left.
        rest = [one for one in (getattr(norm, "drop", None), getattr(norm, "act", None)) if one is not None]
        replaced[names[id(norm)]] = nn.Sequential(*rest) if rest else nn.Identity()
    for name, activation in frozen.activations.items():
        place, _, side = name.rpartition(".")
        if place not in replaced and side == "input":
            replaced[place] = nn.Sequential(Grid(*activation, onnx=onnx), made.get_submodule(place))
        elif side == "output":
            replaced[place] = nn.Sequential(
                replaced.get(place) or made.get_submodule(place), Grid(*activation, onnx=onnx)
            )
    for name, module in replaced.items():
        if not name:
            return module.eval()
        made.set_submodule(name, module)
    return made.eval()


class Grid(nn.Module):
    """Puts an activation on its grid of 0 to 255."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor, onnx: bool):
        super().__init__()
        self.register_buffer("scale", scale.detach().float().reshape(()).cpu())
        self.register_buffer("zero_point", zero_point.detach().reshape(()).to(torch.uint8).cpu())
        self.onnx = onnx

    def forward(self, values: Tensor) -> Tensor:
        """Any shape, float32."""
        if self.onnx:
            integers = _symbolic("QuantizeLinear", (values, self.scale, self.zero_point), torch.uint8, values.shape)
            return _symbolic("DequantizeLinear", (integers, self.scale, self.zero_point), torch.float32, values.shape)
        zero_point = self.zero_point.float()
        return ((torch.round(values / self.scale) + zero_point).clamp(0, 255) - zero_point) * self.scale


class _Integers(nn.Module):
    """An integer tensor with a scale for each slice along `axis`."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, axis: int, onnx: bool):
        super().__init__()
        self.register_buffer("integers", integers.contiguous())
        self.register_buffer("scale", scale.float().reshape(-1).contiguous())
        self.register_buffer("zero_point", torch.zeros_like(self.scale, dtype=integers.dtype))
        self.axis, self.onnx = axis, onnx
        self.shape = [-1 if one == axis else 1 for one in range(integers.dim())]

    def forward(self) -> Tensor:
        """As floats."""
        if self.onnx:
            operands = (self.integers, self.scale, self.zero_point)
            shape = self.integers.shape
            return _symbolic("DequantizeLinear", operands, torch.float32, shape, {"axis": self.axis})
        return self.integers.float() * self.scale.reshape(self.shape)


def _symbolic(
    kind: str, operands: tuple[Tensor, ...], dtype: torch.dtype, shape: Any, attributes: Any = None
) -> Tensor:
    return torch.onnx.ops.symbolic(kind, operands, attributes or {}, dtype=dtype, shape=shape, version=OPSET)


class Convolution(nn.Module):
    """A convolution of integers, the norm behind it in its scales and bias."""

    def __init__(
        self, module: _ConvNd, integers: Tensor, scale: Tensor, grid: Grid | None, norm: _BatchNorm | None, onnx: bool
    ):
        super().__init__()
        gain, bias = folded(module, norm)
        if gain is not None:
            # A scale is above zero: of a norm with a negative factor the integers change their sign, of one of zero go.
            integers = integers * torch.sign(gain).to(torch.int8).reshape(-1, *[1] * (integers.dim() - 1))
        factors = _factors(scale, gain, integers, bias, grid)
        self.grid = grid if grid is not None else nn.Identity()
        self.weight = _Integers(integers, factors, 0, onnx)
        self.bias = _bias(bias, factors, grid, onnx)
        # The convolution itself, which knows its strides and how it pads; in a list it is no part of this module.
        self.plain = [copy.copy(module)]

    def forward(self, images: Tensor) -> Tensor:
        """As the convolution, or as it and its norm."""
        return self.plain[0]._conv_forward(self.grid(images), self.weight(), self.bias())


class Linear(nn.Module):
    """A linear layer of integers."""

    def __init__(self, module: nn.Module, integers: Tensor, scale: Tensor, grid: Grid | None, onnx: bool):
        super().__init__()
        _, bias = folded(module, None)
        integers = integers.T if is_conv1d(module) else integers
        factors = _factors(scale, None, integers, bias, grid)
        self.grid = grid if grid is not None else nn.Identity()
        # (in, out), as products have it; Hugging Face's Conv1D stores it so.
        self.weight = _Integers(integers.T, factors, 1, onnx)
        self.bias = _bias(bias, factors, grid, onnx)

    def forward(self, values: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        values, weight, bias = self.grid(values), self.weight(), self.bias()
        if bias is not None and values.dim() == 2:
            return torch.addmm(bias, values, weight)  # which onnxruntime computes from integers
        found = torch.matmul(values, weight)
        return found if bias is None else found + bias


def _factors(scale: Tensor, gain: Tensor | None, integers: Tensor, bias: Tensor | None, grid: Grid | None) -> Tensor:
    empty = (integers == 0).flatten(1).all(1)
    inputs: Tensor = grid.scale if grid is not None else torch.ones(())
    return product_scales(scale, gain, empty, bias if grid is not None else None, inputs)


class _Floats(nn.Module):
    def __init__(self, values: Tensor | None):
        super().__init__()
        self.register_buffer("values", values)

    def forward(self) -> Tensor | None:
        return self.values  # type: ignore[return-value]


def _bias(bias: Tensor | None, factors: Tensor, grid: Grid | None, onnx: bool) -> nn.Module:
    """A bias in the steps of the products, of 32 bits, as products of integers add it; floats where those are none."""
    if bias is None:
        return _Floats(None)
    if grid is None:
        return _Floats(bias.float())
    scale = factors * grid.scale.double()
    return _Integers(in_steps(bias, scale), scale, 0, onnx)
