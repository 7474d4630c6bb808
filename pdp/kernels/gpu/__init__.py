"""Triton kernels for a GPU: what `pdp.masks` and `pdp.patterns.nm` define, in a few passes over the weights.

Everything here equals the definitions there, bit for bit where something is selected. Each topic has two files, one
with the kernels and one with the functions that call them: selection and cuts, masking and masks (single weights),
grouping and groups (N:M), unit_masking and units (channels).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pdp.masks.soft import as_cut, lies_dense
from pdp.masks.transforms import in_transform

KINDS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2**31 - 1  # most numbers in a tensor, because the kernels index with 32 bits


def usable(weight: Tensor) -> bool:
    """Whether the kernels accept this weight: on a GPU, dense in memory, and not inside a compiled step."""
    if torch.compiler.is_compiling() or not (weight.is_cuda or _interpreted()):
        return False
    if type(weight) not in (Tensor, nn.Parameter) or in_transform():  # a subclass may have no address
        return False
    return weight.dtype in KINDS and weight.numel() <= LARGEST and lies_dense(weight) and runs_on(weight.device)


def unit_kernels(mask: Tensor, tensors: Sequence[Tensor], units: Sequence[Tensor | None]) -> Any:
    """The kernels that compute `pdp.masks.units.mask_units` for these arguments; None where there are none."""
    if any(one.device != mask.device for one in tensors):
        return None
    if all(own is None for own in units) and all(map(usable, tensors)):
        from pdp.kernels.gpu import units as kernels

        return kernels
    if all(usable(one) or one.dim() == 2 and usable(one.t()) for one in tensors):
        from pdp.kernels.gpu.columns import ColumnKernels

        return ColumnKernels(units)
    return None


@cache
def _interpreted() -> bool:
    """Whether Triton's own interpreter is on, which runs the kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def runs_on(device: torch.device) -> bool:
    """Whether a kernel can be compiled and run on this device; if not, warns once with the reason."""
    weight = torch.ones(2, device=device)
    try:
        from pdp.kernels.gpu.cuts import Cuts
        from pdp.kernels.gpu.masks import device_prune

        device_prune(weight, as_cut(0.5, weight), 1.0, torch.float32)
        Cuts([weight]).find([weight], [1])
    except torch.OutOfMemoryError:
        raise
    # Triton, or the compiler and headers that it needs, may be missing, or the GPU may be too old for it.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"Triton's kernels do not run on {device}, pruning goes on without: {reason}", stacklevel=2)
        return False
    return True
