"""Bytes that a model takes on the disk: floats and integers, dense and without their zeros, and compressed after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdp.layers import weighted_sites
from pdp.quantize.frozen import Frozen

_LONGEST = 255  # zeros that one byte of a run can say
ZSTD_LEVEL = 3


@torch.no_grad()
def bytes_on_disk(model: nn.Module, frozen: Frozen | None = None) -> dict[str, int]:
    """Bytes of the whole model, by form: fp32, fp32_bitmask, fp32_runs, and int8 or int4 likewise where quantized.

    Everything but convolution and linear weights (norms, biases, embeddings, buffers) lies dense in its own type in
    every form. bitmask: one bit a weight and the numbers that are not zero. runs: for each of these a byte with how
    many zeros lie before it, 255 for as many and no number yet. int8, int4: integers (two of 4 bits in a byte), float32
    scales, and floats for what was left so. _zstd: the same bytes after Zstandard, where a package for it is there.
    """
    tensors, weights = _parts(model)
    rest = b"".join(_raw(tensor) for name, tensor in tensors.items() if name not in weights)
    forms = {"fp32": rest, "fp32_bitmask": rest, "fp32_runs": rest}
    kind = f"int{frozen.bits}" if frozen is not None else ""
    if frozen is not None:
        scales = b"".join(_raw(tensor) for tensor in frozen.tensors().values())
        forms |= {kind: rest + scales, f"{kind}_bitmask": rest + scales, f"{kind}_runs": rest + scales}
    for name in weights:
        floats = tensors[name].detach().float().cpu().numpy().reshape(-1)
        _add(forms, "fp32", floats, 32)
        if frozen is not None and name in frozen.weights:
            integers = frozen.integers(name, tensors[name].detach()).cpu().numpy().reshape(-1)
            _add(forms, kind, integers, frozen.bits)
        elif frozen is not None:
            _add(forms, kind, floats, 32)
    found = {form: len(data) for form, data in forms.items()}
    compress = compressor()
    if compress is not None:
        found |= {f"{form}_zstd": len(compress(data)) for form, data in forms.items()}
    return found


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _parts(model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the state dict, each once, and which of them are convolution and linear weights."""
    own = {id(site.module._parameters[site.parameter]) for _, _, site in weighted_sites(model)}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = id(parameters[name]) if name in parameters else id(tensor)
        if key not in seen:
            seen.add(key)
            tensors[name] = tensor
    return tensors, [name for name in tensors if id(parameters.get(name)) in own]


def _add(forms: dict[str, bytes], kind: str, values: np.ndarray, bits: int) -> None:
    there = values != 0
    forms[kind] += packed(values, bits)
    forms[f"{kind}_bitmask"] += np.packbits(there).tobytes() + packed(values[there], bits)
    gaps, numbers = runs(values)
    forms[f"{kind}_runs"] += gaps.tobytes() + packed(numbers, bits)


def packed(values: np.ndarray, bits: int) -> bytes:
    """The numbers in a row; of 4 bits two in a byte, the first in the low half, in two's complement."""
    if bits != 4:
        return values.tobytes()
    nibbles = (values.astype(np.int8) & 15).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[::2] | (nibbles[1::2] << 4)).tobytes()


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a flat array the gaps (uint8), and the numbers that are not zero; a gap of 255 has no number behind it."""
    places = np.flatnonzero(values)
    before = np.diff(places, prepend=-1) - 1
    full, left = np.divmod(before, _LONGEST)
    gaps = np.full(int(full.sum()) + len(places), _LONGEST, dtype=np.uint8)
    gaps[np.cumsum(full + 1) - 1] = left
    return gaps, values[places]


def unrun(gaps: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """Takes back `runs`; `size` is the length of the array."""
    values = np.zeros(size, dtype=numbers.dtype)
    ends = np.cumsum(gaps.astype(np.int64) + (gaps != _LONGEST))
    values[ends[gaps != _LONGEST] - 1] = numbers
    return values


def compressor() -> Callable[[bytes], bytes] | None:
    """Zstandard, from the standard library (Python 3.14) or the package zstandard; None where there is neither."""
    module: Any
    try:
        from compression import zstd as module  # type: ignore[no-redef, import-not-found]

        return lambda data: module.compress(data, level=ZSTD_LEVEL)
    except ImportError:
        try:
            import zstandard as module
        except ImportError:
            return None
    return module.ZstdCompressor(level=ZSTD_LEVEL).compress
