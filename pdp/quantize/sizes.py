"""The bytes that a model takes on the disk: floats and integers, with and without its zeros, and compressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdp.layers import weighted_sites
from pdp.quantize.frozen import Frozen

_LONGEST = 255  # zeros that one byte of a run can count
ZSTD_LEVEL = 3


@torch.no_grad()
def bytes_on_disk(model: nn.Module, frozen: Frozen | None = None) -> dict[str, int]:
    """Bytes of the whole model by form: fp32, fp32_bitmask, fp32_runs, and the same for int8 or int4.

    In every form everything except convolution and linear weights (norms, biases, embeddings, buffers) is stored dense
    in its own dtype. bitmask: one bit per weight, and the nonzero numbers. runs: for each nonzero number a byte with
    the number of zeros before it; 255 stands for 255 zeros without a number. int8, int4: integers (two 4-bit ones per
    byte), float32 scales, and floats for what is not quantized. _zstd: the same bytes compressed by Zstandard, if a
    package for it is installed.
    """
    tensors, weights = _parts(model)
    rest = b"".join(_raw(tensor) for name, tensor in tensors.items() if name not in weights)
    # In parts, joined once: a growing whole would be copied again for each layer.
    forms = {"fp32": [rest], "fp32_bitmask": [rest], "fp32_runs": [rest]}
    kind = f"int{frozen.bits}" if frozen is not None else ""
    if frozen is not None:
        # The biases that ship take the place of the stored ones, and as many bytes.
        kept = {name: tensor for name, tensor in frozen.tensors().items() if not name.endswith(".shipped")}
        scales = b"".join(_raw(tensor) for tensor in kept.values())
        forms |= {kind: [rest, scales], f"{kind}_bitmask": [rest, scales], f"{kind}_runs": [rest, scales]}
    for name in weights:
        floats = tensors[name].detach().float().cpu().numpy().reshape(-1)
        _add(forms, "fp32", floats, 32)
        if frozen is not None and name in frozen.weights:
            integers = frozen.integers(name, tensors[name].detach()).cpu().numpy().reshape(-1)
            _add(forms, kind, integers, frozen.bits)
        elif frozen is not None:
            _add(forms, kind, floats, 32)
    found = {form: sum(map(len, parts)) for form, parts in forms.items()}
    compress = compressor()
    if compress is not None:
        found |= {f"{form}_zstd": len(compress(b"".join(parts))) for form, parts in forms.items()}
    return found


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _parts(model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the state dict without duplicates, and which of them are convolution and linear weights."""
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


def _add(forms: dict[str, list[bytes]], kind: str, values: np.ndarray, bits: int) -> None:
    there = values != 0
    forms[kind] += [packed(values, bits)]
    forms[f"{kind}_bitmask"] += [np.packbits(there).tobytes(), packed(values[there], bits)]
    gaps, numbers = runs(values)
    forms[f"{kind}_runs"] += [gaps.tobytes(), packed(numbers, bits)]


def packed(values: np.ndarray, bits: int) -> bytes:
    """The numbers as bytes; 4-bit ones two per byte in two's complement, the first in the low half."""
    if bits != 4:
        return values.tobytes()
    nibbles = (values.astype(np.int8) & 15).astype(np.uint8)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return (nibbles[::2] | (nibbles[1::2] << 4)).tobytes()


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gaps (uint8) before the nonzero numbers of a flat array, and these numbers; 255 has no number after it."""
    places = np.flatnonzero(values)
    before = np.diff(places, prepend=-1) - 1
    full, left = np.divmod(before, _LONGEST)
    gaps = np.full(int(full.sum()) + len(places), _LONGEST, dtype=np.uint8)
    gaps[np.cumsum(full + 1) - 1] = left
    return gaps, values[places]


def unrun(gaps: np.ndarray, numbers: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `runs`; `size` is the length of the array."""
    values = np.zeros(size, dtype=numbers.dtype)
    ends = np.cumsum(gaps.astype(np.int64) + (gaps != _LONGEST))
    values[ends[gaps != _LONGEST] - 1] = numbers
    return values


def compressor() -> Callable[[bytes], bytes] | None:
    """Zstandard, from the standard library (Python 3.14) or the package zstandard; None if there is neither."""
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
