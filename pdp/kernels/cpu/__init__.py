"""Kernels for the CPU, compiled by Numba where it is installed: what `pdp.masks` defines, in one pass each.

Everything here equals the definitions in `pdp.masks`; the cuts of single weights and of N:M are equal bit for bit. Each
topic has two files, one with the kernels and one with the functions that call them: selection and cuts, masking and
masks, grouping and groups, unit_masking and units, choosing and candidates. Weights that share a call and a node of
autograd are in joint, and team runs the parts of a kernel on threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pdp.masks.soft import lies_dense
from pdp.masks.transforms import in_transform, is_watched

if TYPE_CHECKING:
    from pdp.kernels.cpu.cuts import Cuts
    from pdp.kernels.cpu.masks import SingleCuts

_PLAIN = {Tensor, nn.Parameter}


class Kernels(NamedTuple):
    """The functions that call the kernels of single weights."""

    prune: Callable[[Tensor, Tensor, Tensor | float], Tensor]
    effective: Callable[..., list[Tensor]]
    joined: Callable[..., tuple[Tensor, ...]]
    single_cuts: type[SingleCuts]
    cuts: type[Cuts]


def usable(*weights: Tensor) -> bool:
    """Whether the kernels accept these weights: float32, dense memory, on the CPU, and not inside a compiled step."""
    if torch.compiler.is_compiling() or in_transform():  # inside of one a weight cannot even be asked
        return False
    for weight in weights:  # no generator: a step asks this twice of every layer
        if (
            not weight.is_cpu
            or weight.dtype is not torch.float32
            or type(weight) not in _PLAIN  # a subclass, such as a sharded tensor, may have no memory address
            or not (weight.is_contiguous() or lies_dense(weight))  # the first spares a call for most
            or weight._is_zerotensor()
            or weight.is_neg()
        ):
            return False
    return not is_watched() and found() is not None


def unit_kernels(
    mask: Tensor, tensors: Sequence[Tensor], units: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]
) -> Any:
    """The kernels that compute `pdp.masks.units.mask_units` for these arguments; None where there are none."""
    plain = all(own is None for own in units) and all(one in (None, torch.float32) for one in dtypes)
    return found_units() if plain and mask.numel() and usable(mask, *tensors) else None


@cache
def found() -> Kernels | None:
    """The kernels of single weights, compiled now where they are not yet; None where they cannot be compiled and run.

    Warns with the reason if Numba is installed. Where it returns them, those of groups and units are there as well.
    """
    return _tried(_single_weights)


@cache
def found_groups() -> Any:
    """The module `groups`, as `found`; compiled only where N:M needs it, because that takes longest."""
    return found() and _tried(_groups)


@cache
def found_units() -> Any:
    """The module `units`, as `found`; compiled only where channels need it."""
    return found() and _tried(_units)


def _tried(kernels: Callable[[], Any]) -> Any:
    """What `kernels` returns; None, and a warning with the reason, where Numba is installed and that fails."""
    if find_spec("numba") is None:
        return None
    try:
        from numba import config

        if config.DISABLE_JIT:  # type: ignore[attr-defined]  # number by number in Python
            return None
        # The first call may happen inside inference mode, no_grad or another default device.
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            return kernels()
    # Numba may not support this processor or Python version, or find no writable cache folder. These errors have no
    # common class.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warnings.warn(f"Numba's kernels do not run here, pruning goes on without: {reason}", stacklevel=3)
        return None


def _single_weights() -> Kernels:
    from pdp.kernels.cpu.cuts import Cuts
    from pdp.kernels.cpu.joint import effective_weights, joined
    from pdp.kernels.cpu.masks import SingleCuts, host_prune

    weight = _eight().requires_grad_()
    cut = torch.tensor(0.5, dtype=torch.float32)
    host_prune(weight, cut, 1.0).sum().backward()
    masks = SingleCuts([cut], [1.0])
    joined([weight], masks, effective_weights([weight], masks))[0].sum().backward()
    Cuts([weight]).find([weight], [1])
    return Kernels(host_prune, effective_weights, joined, SingleCuts, Cuts)


def _groups() -> Any:
    from pdp.kernels.cpu import groups

    inner = _eight().requires_grad_()
    groups.prune_groups(inner, groups.full_cuts(inner, 1, 4, 2), 1.0, 4, 1).sum().backward()
    return groups


def _units() -> Any:
    from pdp.kernels.cpu import units

    inner = _eight()
    one = inner.new_ones(1)
    given = dict(enumerate(units.masked(one, [inner], [one.dtype])))
    units.gradients(one, one, [inner], [True], given)
    units.row_squares([inner])
    return units


def _eight() -> Tensor:
    """Whatever the default type is: the kernels read float32."""
    return torch.ones(1, 8, dtype=torch.float32)
