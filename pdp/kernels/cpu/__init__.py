"""Kernels for the CPU, compiled by Numba where it is installed: what `pdp.masks` defines, in one pass each.

The definitions are in `pdp.masks`; everything here equals them, the cut bit for bit. Each question has two files, the
kernels and what calls them: selection and cuts, masking and masks. Threads are Python's, as Numba's share
OpenMP with PyTorch, whose own operations take another number of threads once they have started.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pdp.masks.soft import lies_dense
from pdp.masks.transforms import in_transform

if TYPE_CHECKING:
    from pdp.kernels.cpu.cuts import Cuts
    from pdp.kernels.cpu.masks import Numbers

_PLAIN = {Tensor, nn.Parameter}


class Kernels(NamedTuple):
    """The functions that call them."""

    prune: Callable[[Tensor, Tensor, Tensor | float], Tensor]
    effective: Callable[..., Iterator[tuple[Tensor, Numbers, Tensor]]]
    differentiable: Callable[[Tensor, Numbers, list[Tensor]], Tensor]
    cuts: type[Cuts]


def usable(weight: Tensor) -> bool:
    """Whether the kernels take this weight: float32 in one piece on the CPU, not inside a step that is compiled."""
    return (
        weight.is_cpu
        and weight.dtype is torch.float32
        and type(weight) in _PLAIN  # a sharded tensor, say, has no address
        and lies_dense(weight)
        and not torch.compiler.is_compiling()
        and not in_transform()
        and found() is not None
    )


@cache
def found() -> Kernels | None:
    """The kernels where they can be compiled and run; where Numba is installed and they cannot, a warning says why."""
    if find_spec("numba") is None:
        return None
    try:
        from numba import config

        if config.DISABLE_JIT:  # type: ignore[attr-defined]  # number by number in Python
            return None
        from pdp.kernels.cpu.cuts import Cuts
        from pdp.kernels.cpu.masks import differentiable, effective_weights, host_prune

        # The first call may come from inside another mode or device.
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            weight = torch.ones(8, requires_grad=True)
            host_prune(weight, torch.tensor(0.5), 1.0).sum().backward()
            list(effective_weights([weight], [torch.tensor(0.5)], [1.0]))
            Cuts([weight]).find([weight], [1])
    # Numba may not know the processor or this Python, or find no folder to write to: its failures share no class.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"Numba's kernels do not run here, pruning goes on without: {reason}", stacklevel=2)
        return None
    return Kernels(host_prune, effective_weights, differentiable, Cuts)
