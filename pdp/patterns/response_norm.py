"""Global response normalisation (ConvNeXt V2), whose mean over channels a smaller module can reproduce exactly.

y = x + bias + weight * x * g / (mean over channels of g + eps), where g is the norm of x over the image. With C' of C
channels left, the others being zero, the mean is C / C' times as large; multiplying weight and eps by C / C' gives the
same result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pdp.patterns import labels as lab

_NAMES = ("GlobalResponseNorm", "ConvNextV2GRN", "GRN")


def is_response_norm(module: Any) -> bool:
    """Whether the module's class has the name of such a norm."""
    return type(module).__name__ in _NAMES


def computes_response_norm(module: Any) -> bool:
    """Whether the module is such a norm, by its name and by what it computes."""
    if not is_response_norm(module):
        return False
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    return weight is not None and bias is not None and weight.numel() == bias.numel() and _computes(module)


def _computes(module: nn.Module) -> bool:
    """Compares the module with the formula, with channels last or first."""
    weight: Tensor = module._parameters["weight"].detach()  # type: ignore[union-attr]
    bias: Tensor = module._parameters["bias"].detach()  # type: ignore[union-attr]
    eps = getattr(module, "eps", 1e-6)
    generator = torch.Generator().manual_seed(0)
    size = weight.numel()
    values = torch.randn(1, 3, 2, size, generator=generator).to(weight)
    for first in (False, True):
        given = values.permute(0, 3, 1, 2) if first else values
        try:
            with torch.no_grad():
                found = module(given)
        except Exception:
            continue
        spread = values.norm(dim=(1, 2), keepdim=True)
        wanted = values + bias.reshape(-1) + weight.reshape(-1) * values * spread / (spread.mean(-1, True) + eps)
        wanted = wanted.permute(0, 3, 1, 2) if first else wanted
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
            return True
    return False


def follow_response_norm(walk: Any, module: Any, inputs: Any, output: Any) -> None:
    """The rule for a walk: a channel that is zero stays zero if its bias is zero."""
    labels = walk.data_labels(inputs[0])
    if labels is None:
        return
    size = module.weight.numel()
    dims = [dim for dim in (labels.dim() - 1, 1) if inputs[0].shape[dim] == size]
    vector = next((one for dim in dims if (one := lab.along(labels, dim, size)) is not None), None)
    if vector is None or bool((vector < 0).any()) or bool((lab.states_of(vector) != lab.ZERO).any()):
        walk.pin(labels, f"its channels pass through {walk.where}, whose mean over them they change")
        return
    atoms = lab.atoms_of(vector)
    for tensor in (module.weight, module.bias):
        own = lab.atoms_of(walk.labels(tensor))
        walk.atoms.tie(atoms, own)
        if tensor is module.bias:
            walk.mask(own)
    walk.put(output, labels)


def rescale(module: Any, key: str, factor: float) -> None:
    """Compensates for the removed channels; called once for each of the norm's tensors."""
    if key != "weight":
        return
    module.weight = nn.Parameter(module.weight.detach() * factor, requires_grad=module.weight.requires_grad)
    if hasattr(module, "eps"):
        module.eps *= factor
