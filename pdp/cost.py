"""Parameters and multiply-adds, per layer: convolution and linear layers, attention products on their own.

It needs only `pdp.layers`; patterns whose target is a share of the MACs use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from pdp.layers import Site, is_conv1d, weighted_sites


@torch.no_grad()
def count_macs(model: nn.Module, example_input: Any) -> pd.DataFrame:
    """Per-layer cost of one forward of `example_input`: name, type, params, nonzero, macs, sparse_macs.

    A MAC is one multiply-add of a convolution or linear layer: output positions x weights that each takes part in
    (groups, stride, padding and dilation included by construction), summed over repeated calls. Biases, norms,
    activations and pooling are not counted. sparse_macs = macs x nonzero / params. `example_input` is a tensor, a tuple
    of arguments or a dict of keywords. `frame.attrs["macs_attention"]` holds the products of queries, keys and values.
    """
    sites = list(weighted_sites(model))
    macs = {name: 0 for name, _, _ in sites}
    handles = [
        one.caller.register_forward_hook(partial(_count, macs, name, one), with_kwargs=True) for name, _, one in sites
    ]
    flops = FlopCounterMode(display=False)
    try:
        with _evaluating(model), _products_in_the_open(), flops:
            _call(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    rows = []
    for name, kind, site in sites:
        weight = _weight(site)
        nonzero = int(torch.count_nonzero(weight))
        rows.append((name, kind, weight.numel(), nonzero, macs[name], macs[name] * nonzero // weight.numel()))
    frame = pd.DataFrame(rows, columns=["name", "type", "params", "nonzero", "macs", "sparse_macs"])
    counts = flops.get_flop_counts().get("Global", {})
    frame.attrs["macs_attention"] = (
        sum(value for operation, value in counts.items() if "bmm" in str(operation) or "attention" in str(operation))
        // 2
    )
    return frame


def _count(
    macs: dict[str, int], name: str, site: Site, caller: nn.Module, inputs: tuple, keywords: dict, output: Any
) -> None:
    """A forward hook: adds what one call of `caller` multiplies by the weight of `site`."""
    weight = _weight(site)
    if isinstance(caller, nn.MultiheadAttention):
        sequences = dict(zip(("query", "key", "value"), inputs, strict=False)) | keywords
        positions = {key: sequences[key].numel() // sequences[key].shape[-1] for key in ("query", "key", "value")}
        if site.parameter == "in_proj_weight":  # a third of it for each
            macs[name] += sum(positions.values()) * weight.numel() // 3
        else:
            of = {"k_proj_weight": "key", "v_proj_weight": "value"}.get(site.parameter, "query")
            macs[name] += positions[of] * weight.numel()
        return
    transposed = isinstance(caller, _ConvTransposeNd)
    outputs = weight.shape[1] if transposed or is_conv1d(caller) else weight.shape[0]
    places = inputs[0].numel() // weight.shape[0] if transposed else output.numel() // outputs
    macs[name] += places * weight.numel()


def _weight(site: Site) -> Tensor:
    weight = site.module._parameters[site.parameter]
    assert weight is not None
    return weight


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are not exactly zero."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)


def count_bytes(model: nn.Module, bytes_per_weight: int = 4) -> pd.DataFrame:
    """What each weight takes to store: name, type, dense, bitmask, csr in bytes, indices included.

    bitmask: the numbers that are not zero and one bit for each weight. csr: these numbers, a column index for each (2
    bytes up to 65,536 columns, else 4) and a 4-byte offset for each row and one more; rows are outputs.
    """
    rows = []
    for name, kind, site in weighted_sites(model):
        weight = _weight(site)
        nonzero = int(torch.count_nonzero(weight))
        outputs = weight.shape[1] if is_conv1d(site.module) else weight.shape[0]
        columns = weight.numel() // outputs
        values = nonzero * bytes_per_weight
        bitmask = values + -(-weight.numel() // 8)
        csr = values + nonzero * (2 if columns <= 65_536 else 4) + 4 * (outputs + 1)
        rows.append((name, kind, weight.numel() * bytes_per_weight, bitmask, csr))
    return pd.DataFrame(rows, columns=["name", "type", "dense", "bitmask", "csr"])


def _call(model: nn.Module, example_input: Any) -> None:
    if isinstance(example_input, dict):
        model(**example_input)
    elif isinstance(example_input, tuple):
        model(*example_input)
    else:
        model(example_input)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: the count must not move BatchNorm's statistics."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _products_in_the_open() -> Iterator[None]:
    """Inside, attention is computed step by step: the fused one skips forwards, and some versions do not count it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
