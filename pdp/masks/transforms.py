"""Masks under `torch.func`, higher derivatives and torch.compile, which the fast autograd functions do not support."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Whether a `torch.func` transform or forward-mode differentiation is active; both need plain operations."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def takes_plain() -> bool:
    """Whether a mask must be computed by plain operations: in a transform, and in a step that is being compiled.

    In a compiled step PyTorch 2.11 takes the gradient of an autograd function for zero if its result is also one of its
    intermediate tensors, as after an operation in place; and a compiler needs no pieces and no memory of ours.
    """
    return torch.compiler.is_compiling() or in_transform()


def is_watched() -> bool:
    """Whether operations are recorded now, as by `torch.jit.trace` or `make_fx`, which do not see kernels of ours."""
    return torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() > 0


def wants_a_graph() -> bool:
    """Whether the backward pass that runs now must itself be differentiable (create_graph=True)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gradients_with_a_graph(
    function: Callable[..., Tensor | tuple[Tensor, ...]], tensors: Sequence[Tensor], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `function` with respect to `tensors`, given the `upstream` gradients of its results.

    They are themselves differentiable in `tensors` and `upstream`.
    """
    with torch.enable_grad():
        made = function(*tensors)
        outputs = made if isinstance(made, tuple) else (made,)
        pairs = [(one, given) for one, given in zip(outputs, upstream, strict=True) if given is not None]
        wanted = [one for one in tensors if one.requires_grad]
        if not pairs or not wanted:
            return [None for _ in tensors]
        found = torch.autograd.grad(
            [one for one, _ in pairs],
            wanted,
            [given.to(one.dtype) for one, given in pairs],
            create_graph=True,
            allow_unused=True,
        )
    by_tensor = dict(zip(map(id, wanted), found, strict=True))
    return [by_tensor.get(id(one)) for one in tensors]
