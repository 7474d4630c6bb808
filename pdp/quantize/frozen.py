"""What remains of quantization after training: scales and zero points, and a model that computes with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pdp.errors import Refusal
from pdp.quantize.fake import ACTIVATION_LEVELS, fake_quantize, integers, weight_bound
from pdp.quantize.hooks import ActivationHook


@dataclass
class Frozen:
    """The scale of each weight by its name, shaped to multiply it; a scale and a zero point for each activation.

    An activation is called after its module, with .input or .output behind it. `biases` are those, of layers and of the
    norms behind them, that products of integers add in their own steps.
    """

    name: str
    bits: int
    weights: dict[str, Tensor]
    activations: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def integers(self, name: str, weight: Tensor) -> Tensor:
        """A weight's integers, as int8 whatever its number of bits."""
        bound = weight_bound(self.bits)
        return integers(weight, self.weights[name].to(weight.device), 0, -bound, bound).to(torch.int8)

    def weight(self, name: str, weight: Tensor) -> Tensor:
        """The quantized weight as floats: integers times scale."""
        bound = weight_bound(self.bits)
        return fake_quantize(weight.detach(), self.weights[name].to(weight.device), 0, -bound, bound)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """While this context is open, the plain `model` computes with quantized weights and activations."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self.check(model)
        stored = {name: parameters[name].detach().clone() for name in (*self.weights, *self.biases)}
        handles = self._hook(model)
        try:
            with torch.no_grad():
                for name in self.weights:
                    parameters[name].copy_(self.weight(name, stored[name]))
                for name, bias in self.biases.items():
                    parameters[name].copy_(bias)
            yield model
        finally:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for name, weight in stored.items():
                    parameters[name].copy_(weight)

    def of_slim(self, model: nn.Module, smaller: nn.Module, slimmed: Callable[[nn.Module], nn.Module]) -> Frozen:
        """The same for a slim model: each weight's scales without those of the removed channels.

        `slimmed` makes the slim model of any model with the same zeros; here it is given one whose weights are the
        scales.
        """
        holding = copy.deepcopy(model)
        parameters = dict(holding.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, scale in self.weights.items():
                weight = parameters[name]
                weight.copy_(torch.where(weight != 0, scale.to(weight), torch.zeros_like(weight)))
            for name, bias in self.biases.items():
                parameters[name].copy_(bias)
        of_scales = dict(slimmed(holding).named_parameters(remove_duplicate=False))
        weights = {}
        for name, scale in self.weights.items():
            others = [place for place, size in enumerate(scale.shape) if size == 1]
            found = of_scales[name].detach().amax(others, keepdim=True) if others else of_scales[name].detach()
            weights[name] = torch.where(found > 0, found, torch.ones_like(found)).to(scale.dtype)
        biases = {name: of_scales[name].detach().clone() for name in self.biases}
        frozen = Frozen(self.name, self.bits, weights, dict(self.activations), biases)
        frozen.check(smaller)
        return frozen

    def check(self, model: nn.Module) -> None:
        """Raises `Refusal` if these belong to another model."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        modules = dict(model.named_modules())
        strange = [
            name
            for name, scale in self.weights.items()
            if name not in parameters
            or any(one not in (1, size) for one, size in zip(scale.shape, parameters[name].shape, strict=False))
            or scale.dim() != parameters[name].dim()
        ]
        strange += [name for name in self.biases if name not in parameters]
        strange += [name for name in self.activations if name.rpartition(".")[0] not in modules]
        if strange:
            raise Refusal(f"the scales are of another model, which has {strange[0]}")

    def _hook(self, model: nn.Module) -> list[RemovableHandle]:
        modules = dict(model.named_modules())
        handles = []
        for name, (scale, zero_point) in self.activations.items():
            place, _, side = name.rpartition(".")
            hook = ActivationHook(partial(_on_grid, scale, zero_point))
            handles.append(hook.attach(modules[place], side == "output"))
        return handles

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors: <weight>.scale, <module>.input.scale, <module>.input.zero_point,
        <bias>.shipped."""
        found = {f"{name}.scale": scale.contiguous().cpu() for name, scale in self.weights.items()}
        for name, (scale, zero_point) in self.activations.items():
            found[f"{name}.scale"] = scale.reshape(()).cpu()
            found[f"{name}.zero_point"] = zero_point.reshape(()).cpu()
        found |= {f"{name}.shipped": bias.contiguous().cpu() for name, bias in self.biases.items()}
        return found

    @classmethod
    def of_tensors(cls, name: str, bits: int, tensors: Mapping[str, Tensor]) -> Frozen:
        """The inverse of `tensors`."""
        activations = {
            key.removesuffix(".zero_point"): (tensors[f"{key.removesuffix('.zero_point')}.scale"], value)
            for key, value in tensors.items()
            if key.endswith(".zero_point")
        }
        weights = {
            key.removesuffix(".scale"): value
            for key, value in tensors.items()
            if key.endswith(".scale") and key.removesuffix(".scale") not in activations
        }
        biases = {key.removesuffix(".shipped"): one for key, one in tensors.items() if key.endswith(".shipped")}
        return cls(name, bits, weights, activations, biases)


def _on_grid(scale: Tensor, zero_point: Tensor, values: Tensor, training: bool) -> Tensor:
    if not values.is_floating_point():
        return values
    return fake_quantize(values, scale.to(values.device), zero_point.to(values.device), 0, ACTIVATION_LEVELS)
