"""Kernels for the CPU, compiled by Numba where it is installed: what `pdp.cut` and `pdp.mask` define, in one pass each.

The definitions stay where they are; everything here equals them, the cut bit for bit. Each question has two files, the
kernels and what calls them: selection and cuts, masking and masks.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from pdp.mask import lies_dense

_THREAD_SAFE = ("omp", "tbb")  # what else spreads loops takes one call at a time


def usable(weight: Tensor) -> bool:
    """Whether the kernels take this weight: float32 in one piece on the CPU, not inside a step that is compiled."""
    if not weight.is_cpu or weight.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if type(weight) not in (Tensor, nn.Parameter):  # a sharded tensor, say, has no address
        return False
    return lies_dense(weight) and run_here()


def run_here() -> bool:
    """Whether the kernels can be compiled and run; where Numba is installed and they cannot, a warning says why."""
    return _home() == os.getpid()


@cache
def _home() -> int | None:
    """The process whose threads run the kernels: a fork of it has none of them. None where they do not run."""
    if find_spec("numba") is None:
        return None
    try:
        from numba import config, threading_layer

        if config.DISABLE_JIT:  # type: ignore[attr-defined]  # number by number in Python
            return None
        from pdp.host_kernels.cuts import Cuts
        from pdp.host_kernels.masks import host_prune

        with torch.enable_grad():
            weight = torch.ones(8, requires_grad=True)
            host_prune(weight, torch.tensor(0.5), 1.0).sum().backward()
        Cuts([weight]).find([weight], [1])
        if threading_layer() not in _THREAD_SAFE:
            return None
    # Numba may not know the processor or this Python, or find no folder to write to: its failures share no class.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"Numba's kernels do not run here, pruning goes on without: {reason}", stacklevel=2)
        return None
    return os.getpid()
