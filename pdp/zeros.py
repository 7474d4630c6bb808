"""Whether a layer multiplies by its stored zeros: a convolution that standardises its weight first does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pdp.layers import is_conv1d, is_plain


class _Operands(TorchDispatchMode):
    """Collects the operands of products that have as many elements as the weight."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.found: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in flop_registry:
            tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            self.found += [one.detach().clone() for one in tensors if one.numel() == self.size and one.dim() > 1]
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def why_zeros_are_lost(module: nn.Module) -> str | None:
    """Why zeros in the module's `weight` are not zero where it multiplies; None if they are.

    A forward that is not the standard one of its layer type is tried out, with half of the weights zero.
    """
    if is_plain(module):
        return None
    kind, weight = type(module).__name__, module._parameters["weight"]
    assert weight is not None
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(weight.shape, generator=generator).sign() * (1 + torch.rand(weight.shape, generator=generator))
    zeros = torch.rand(weight.shape, generator=generator) < 0.5
    values = values.masked_fill(zeros, 0.0).to(weight)
    buffers = {name: one.clone() for name, one in module.named_buffers()}
    modes = [one for one in module.modules() if one.training]
    operands = _Operands(weight.numel())
    try:
        module.eval()
        with torch.random.fork_rng(devices=[]), operands:
            functional_call(module, {"weight": values} | buffers, (_example(module, weight),))
    except Exception as error:  # an unknown forward may raise anything for an input that is not meant for it
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:80]
        return f"{kind} has a forward of its own, which cannot be tried by itself ({reason})"
    finally:
        for one in modes:
            one.training = True
    lost, count = zeros.to(weight.device), int(zeros.sum())
    for operand in operands.found:
        # A square weight may also be transposed.
        views = [view for view in (operand, operand.mT) if view.shape == weight.shape]
        kept = any(bool((view[lost] == 0).all()) for view in views) if views else int((operand == 0).sum()) >= count
        if kept:
            return None
    return f"{kind} changes its weight before it multiplies: stored zeros would be none there"


def _example(module: nn.Module, weight: Tensor) -> Tensor:
    if isinstance(module, _ConvNd):
        sides = [
            (size - 1) * gap + 1 + 2 * step
            for size, gap, step in zip(module.kernel_size, module.dilation, module.stride, strict=True)
        ]
        return torch.ones(2, module.in_channels, *sides, dtype=weight.dtype, device=weight.device)
    inputs = weight.shape[0] if is_conv1d(module) else weight.shape[1]
    return torch.ones(2, inputs, dtype=weight.dtype, device=weight.device)
