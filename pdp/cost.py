"""Parameters and multiply-adds per layer: convolution and linear layers, and attention products separately.

It imports only `pdp.layers` and `pdp.products`; patterns whose target is a share of the MACs use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pdp.experts import ExpertTokens, experts_one_by_one
from pdp.layers import Site, input_axis, router_sites, weighted_sites
from pdp.products import Products, shared_weights
from pdp.reading_mode import stored_weights

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def count_macs(model: nn.Module, example_input: Any) -> pd.DataFrame:
    """Per-layer cost of one forward of `example_input`: name, type, params, nonzero, macs, sparse_macs.

    A MAC is one multiply-add of a convolution or linear layer: output positions x weights that each takes part in
    (groups, stride, padding and dilation included by construction), counted where the product happens, whichever module
    reads the weight, and summed over repeated calls. Biases, norms, activations and pooling are not counted.
    sparse_macs = macs x nonzero / params. `example_input` is a tensor, a tuple of arguments or a dict of keywords.
    Of experts in one parameter the multiply-adds are those of the tokens that reach any, in equal shares: which of them
    the example's tokens choose says nothing of others. Three attributes hold the rest: `frame.attrs["macs_attention"]`
    the products of two activations (queries, keys and values), `"macs_other"` those with other parameters and buffers
    by name, `"uncounted"` the operations that cannot be counted. `"macs_all_experts"` is the sum of `macs` as it would
    be if every token went through all experts.
    """
    sites = _sites(model)
    # The names of the layers by that of their parameter: what is called after a module says only `weight` of it.
    layers: dict[str, list[str]] = {}
    for name, _, site in sites:
        layers.setdefault(parameter_name(model, site), []).append(name)
    products = Products(model, list(layers))
    whole: list[tuple[str, nn.Module, Tensor]] = [
        (parameter_name(model, site), site.caller, site.parameter_held) for _, _, site in sites if not site.index
    ]
    shared = shared_weights(whole)
    handles = []
    for name, caller in shared:
        handles.append(caller.register_forward_pre_hook(products.runs(name)))
        handles.append(caller.register_forward_hook(products.ran(name), always_call=True))
    try:
        one_by_one = experts_one_by_one(model)
        with _evaluating(model), _products_in_the_open(), stored_weights(), one_by_one, ExpertTokens(model) as tokens:
            _counted(model, example_input, products)
    finally:
        for handle in handles:
            handle.remove()
    macs: dict[str, int] = {}
    for name, count in products.by_name.items():
        own = layers.get(name, [])
        for place, layer in enumerate(own):
            macs[layer] = count // len(own) + (place < count % len(own))
    frame = _table(sites, macs)
    frame.attrs["macs_all_experts"] = int(frame.macs.sum()) + sum(
        tokens.of(site.module) * site.stored.numel() - macs.get(name, 0)
        for name, _, site in sites
        if site.index is not None and macs.get(name)
    )
    frame.attrs["macs_attention"] = products.rest
    frame.attrs["macs_other"] = {name: count for name, count in products.by_name.items() if name not in layers}
    frame.attrs["uncounted"] = list(products.uncounted)
    return frame


def uncounted(model: nn.Module) -> pd.DataFrame:
    """`count_macs` for a model that cannot be run: the columns of MACs are empty."""
    frame = _table(_sites(model), None)
    frame.attrs |= {"macs_all_experts": None, "macs_attention": None, "macs_other": {}, "uncounted": []}
    return frame


def _sites(model: nn.Module) -> list[tuple[str, str, Site]]:
    """Every weight that counts as a convolution's or linear layer's, those that choose among experts too."""
    return [*weighted_sites(model), *router_sites(model)]


def _table(sites: list[tuple[str, str, Site]], macs: dict[str, int] | None) -> pd.DataFrame:
    rows = []
    for name, kind, site in sites:
        weight = site.stored
        nonzero = int(torch.count_nonzero(weight))
        own = None if macs is None else macs.get(name, 0)
        sparse = None if own is None else own * nonzero // max(1, weight.numel())
        rows.append((name, kind, weight.numel(), nonzero, own, sparse))
    import pandas as pd

    return pd.DataFrame(rows, columns=["name", "type", "params", "nonzero", "macs", "sparse_macs"])


def parameter_name(model: nn.Module, site: Site) -> str:
    """The name in the model's state dict of the weight at `site`."""
    prefix = next(name for name, module in model.named_modules() if module is site.module)
    return f"{prefix}.{site.parameter}".lstrip(".")


def _counted(model: nn.Module, example_input: Any, products: Products) -> None:
    """Runs the model once; if it fails only because it is watched, notes that, and keeps what was counted so far."""
    try:
        with products:
            _call(model, example_input)
    except Exception as error:  # a watched model may raise anything; whether it runs unwatched decides
        _call(model, example_input)
        reason = next(iter(str(error).splitlines()), "")
        products.uncounted[f"all from {type(error).__name__} on ({reason[:100]})"] = None


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of all parameters, and of those that are not exactly zero."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(int(torch.count_nonzero(p)) for p in parameters)


def count_bytes(model: nn.Module, bytes_per_weight: int = 4) -> pd.DataFrame:
    """The storage of each weight: name, type, and the bytes of the forms dense, bitmask and csr, indices included.

    bitmask: the nonzero numbers and one bit for each weight. csr: the nonzero numbers, a column index for each (2 bytes
    up to 65,536 columns, else 4) and a 4-byte offset for each row and one more; rows are outputs.
    """
    rows = []
    for name, kind, site in _sites(model):
        weight = site.stored
        nonzero = int(torch.count_nonzero(weight))
        outputs = weight.shape[1 - input_axis(site)]
        columns = weight.numel() // outputs
        values = nonzero * bytes_per_weight
        bitmask = values + -(-weight.numel() // 8)
        csr = values + nonzero * (2 if columns <= 65_536 else 4) + 4 * (outputs + 1)
        rows.append((name, kind, weight.numel() * bytes_per_weight, bitmask, csr))
    import pandas as pd

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
    """Inside this context the model is in evaluation mode, so that counting does not change BatchNorm's statistics."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _products_in_the_open() -> Iterator[None]:
    """Inside this context attention is computed in single operations: fused ones skip forwards or are not counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
