"""Triton kernels for a GPU: what `pdp.cut`, `pdp.mask` and `pdp.patterns.nm` define, in a few passes over the weights.

The definitions stay where they are; everything here equals them, bit for bit where something is selected.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from pdp.mask import lies_dense

KINDS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2**31 - 1  # numbers in a tensor, as they are counted in 32 bits


def usable(weight: Tensor) -> bool:
    """Whether the kernels take this weight: on a GPU, in one piece, and not inside a step that is compiled anyway."""
    if not (weight.is_cuda or _interpreted()) or torch.compiler.is_compiling():
        return False
    return weight.dtype in KINDS and weight.numel() <= LARGEST and lies_dense(weight) and _installed()


def _interpreted() -> bool:
    """Triton's own interpreter runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None
