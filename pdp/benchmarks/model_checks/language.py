"""Checks transformers of many architectures: single weights, 2:4 and channels, saved, opened again, generating text."""

from __future__ import annotations

import collections
import copy
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # once for all processes that check a model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pdp.benchmarks.model_checks import language_zoo as zoo
from pdp.cost import count_macs
from pdp.errors import Refusal
from pdp.experts import experts_one_by_one
from pdp.export.slim import Slimmed, slim
from pdp.export.slim_folder import write_slim
from pdp.export.slim_loader import load_slim
from pdp.layers import Layer, input_axis, is_plain
from pdp.pruner.pruner import Pruner

names = zoo.names
_NOW = {"name": "constant"}
_TEMPERATURE = 1e-4
_NEAR = 2e-4  # tolerance relative to the largest number, in float32
_NEW_TOKENS = 5

Example = dict[str, Tensor]


def check(name: str) -> dict[str, Any]:
    """Status "works", "wrong" or "refused"; by pattern what was pruned, what stays dense, and what was compared."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, example = zoo.build(name)
    return check_model(model, example, zoo.kind_of(name))


def check_model(model: Any, example: Example, kind: str) -> dict[str, Any]:
    """`check` of a given model in evaluation mode; leaves it unchanged."""
    found: dict[str, Any] = {"kind": kind, "class": type(model).__name__}
    found["weights"] = sum(one.numel() for one in model.parameters())
    wrong = _macs(model, example, found)
    writes = kind in ("decoder", "pair") and _writes(model, example, kind)
    found["generate"] = "" if kind not in ("decoder", "pair") else "equal" if writes else "its own is no other"
    for pattern in ("random", "2:4", "channel"):
        try:
            told = (_channel if pattern == "channel" else _weights)(
                copy.deepcopy(model), example, pattern, kind, writes
            )
        except Refusal as error:
            found[pattern] = {"refused": str(error)[:300]}
            continue
        wrong += [f"{pattern}: {one}" for one in told.pop("wrong")]
        found[pattern] = told
    refused = all("refused" in found[pattern] for pattern in ("random", "2:4", "channel"))
    return {"status": "wrong" if wrong else "refused" if refused else "works", "wrong": wrong, **found}


def _macs(model: Any, example: Example, found: dict[str, Any]) -> list[str]:
    """Compares MACs with two other counts: the total of PyTorch's counter, and each linear layer's by its outputs."""
    frame = count_macs(model, example)
    found |= {"macs": int(frame.macs.sum()), "macs_all_experts": frame.attrs["macs_all_experts"]}
    mine = int(frame.macs.sum()) + frame.attrs["macs_attention"] + sum(frame.attrs["macs_other"].values())
    by_hand: dict[str, int] = collections.Counter()

    def count(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            by_hand[name] += output.numel() * module.in_features

        return hook

    # A router may be a linear layer whose output is more than its product.
    linear = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear) and is_plain(one)]
    handles = [one.register_forward_hook(count(name)) for name, one in linear]
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), experts_one_by_one(model):
            model(**example)
    finally:
        for handle in handles:
            handle.remove()
    theirs = counter.get_total_flops() // 2
    wrong = [] if mine == theirs else [f"{mine} multiply-adds, PyTorch's counter has {theirs}"]
    told = dict(zip(frame.name, frame.macs, strict=True))
    wrong += [
        f"{name}: {told[name]} multiply-adds, {own} by hand" for name, own in by_hand.items() if told[name] != own
    ]
    return wrong


def _weights(model: Any, example: Example, pattern: str, kind: str, writes: bool) -> dict[str, Any]:
    wrong: list[str] = []
    plain = copy.deepcopy(model)
    share = None if pattern == "2:4" else 0.6
    pruner = Pruner(model, pattern=pattern, sparsity=share, epochs=1, schedule=_NOW, temperature=_TEMPERATURE)
    pruner.start_epoch(0)
    total = sum(layer.units for layer in pruner.layers)
    pruned = sum(layer.pruned for layer in pruner.layers)
    if pruned != (total // 2 if share is None else int(share * total + 0.5)):
        wrong.append(f"{pruned} of {total} weights pruned")
    wrong += _against_formula(pruner, model, plain, example)
    with torch.no_grad():
        with pruner.hard():
            hard = outputs(model, example)
        pruner.finalize()
        final = outputs(model, example)
    if not far(hard, final) <= 1e-6:
        wrong.append(f"hard() and finalize() differ by {far(hard, final):.2g}")
    if (zeros := sum(int((layer.weight == 0).sum()) for layer in pruner.layers)) != pruned:
        wrong.append(f"{zeros} zeros for {pruned} pruned weights")
    if pattern == "2:4" and not all(_obeys(layer) for layer in pruner.layers):
        wrong.append("a group has more than two weights left")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder).eval()
    wrong += _same(final, again, model, example, kind, writes, "opened again")
    reasons = collections.Counter(_kind(one) for one in pruner.skipped.values()).most_common(8)
    return {"wrong": wrong, "prunable": round(pruner.prunable_share, 4), "layers": len(pruner.layers), "left": reasons}


def _channel(model: Any, example: Example, pattern: str, kind: str, writes: bool) -> dict[str, Any]:
    dense = copy.deepcopy(model)
    pruner = Pruner(
        model,
        **{"pattern": pattern, "sparsity": 0.5, "epochs": 1, "schedule": _NOW},  # type: ignore[arg-type]
        allocation="uniform",
        example_input=example,
    )
    pruner.start_epoch(0)
    model.eval()
    with torch.no_grad():
        with pruner.hard():
            hard = outputs(model, example)
        pruner.finalize()
        final = outputs(model, example)
        slimmed = slim(model, example)
        small = outputs(slimmed.model.eval(), example)
    pairs = (("hard() and finalize()", hard, final), ("finalize() and slim", final, small))
    wrong = [f"{what} differ by {far(one, other):.2g}" for what, one, other in pairs if not far(one, other) < _NEAR]
    gone = {name: count for name, (count, _) in slimmed.removed.items()}
    wrong += [
        f"{gone.get(layer.name, 0)} units of {layer.name} are gone, {layer.pruned} were pruned"
        for layer in pruner.layers
        # If no token of the finished model chooses an expert, it is not read, and what it lost remains in place.
        if layer.pruned != gone.get(layer.name, 0) and not (".experts." in layer.name and layer.name not in gone)
    ]
    wrong += _opened(slimmed, dense, small, example, kind, writes)
    if writes and not torch.equal(written(model, example, kind), written(slimmed.model, example, kind)):
        wrong.append("the slim model writes something else")
    units = {name: one.units for name, one in pruner.pattern.couplings.items() if one.heads}  # type: ignore[attr-defined]
    reasons = collections.Counter(_kind(one) for one in pruner.skipped.values()).most_common(8)
    left = sum(one.numel() for one in slimmed.model.parameters()) / sum(one.numel() for one in dense.parameters())
    return {
        **{"wrong": wrong, "couplings": len(pruner.layers), "heads": sum(units.values()), "left": reasons},
        **{"parameters": round(left, 4), "opens": slimmed.opens},
    }


def _opened(slimmed: Slimmed, dense: Any, small: Tensor, example: Example, kind: str, writes: bool) -> list[str]:
    """Opens a slim model from its folder by its loader, and by transformers if its configuration gives the sizes."""
    model: Any = slimmed.model
    with tempfile.TemporaryDirectory() as folder:
        write_slim(slimmed, Path(folder), {})
        loaded = load_slim(copy.deepcopy(dense), folder).eval()
        wrong = _same(small, loaded, model, example, kind, False, "from its folder")
        if slimmed.opens:
            again = type(model).from_pretrained(folder).eval()
            wrong += _same(small, again, model, example, kind, writes, "by from_pretrained")
    return wrong


def _same(wanted: Tensor, again: Any, model: Any, example: Example, kind: str, writes: bool, what: str) -> list[str]:
    with torch.no_grad():
        found = outputs(again, example)
    wrong = [] if far(wanted, found) <= 1e-6 else [f"{what} it is another by {far(wanted, found):.2g}"]
    if writes:
        texts = [written(model, example, kind), written(again, example, kind), written(again, example, kind, False)]
        if not all(torch.equal(texts[0], one) for one in texts[1:]):
            wrong.append(f"{what} it writes something else, or without a cache")
    return wrong


def _writes(model: Any, example: Example, kind: str) -> bool:
    """Whether the dense model itself generates the same with a cache and without."""
    try:
        return torch.equal(written(model, example, kind), written(model, example, kind, False))
    except Exception:  # not every architecture can generate; any error means it cannot
        return False


@torch.no_grad()
def written(model: Any, example: Example, kind: str, cache: bool = True) -> Tensor:
    """The tokens that the model generates greedily; (texts, tokens)."""
    settings = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "do_sample": False, "use_cache": cache}
    inputs = example["input_ids"]
    return model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)


def outputs(model: Any, example: Example) -> Tensor:
    """The first tensor of the model's output."""
    found = model(**example)
    return found.logits if getattr(found, "logits", None) is not None else found[0]


def _against_formula(pruner: Pruner, model: Any, plain: Any, example: Example) -> list[str]:
    """A model with the masked weights as its parameters must compute the same; gradients must follow the formula."""
    slopes: dict[str, Tensor] = {}
    with torch.no_grad():
        for layer in pruner.layers:
            parameter = plain.get_parameter(layer.parameter)
            slope = slopes.setdefault(layer.parameter, torch.ones_like(parameter, dtype=torch.float64))
            index = layer.sites[0].index
            stored = parameter if index is None else parameter[index]
            if not layer.active:
                continue
            weight = stored.double()
            cut = pruner.pattern.spread(layer.state["cut"], layer, layer.members[0], stored).double()
            mask = ((weight**2 - cut * cut.abs()) / _TEMPERATURE).clamp(-60, 60).sigmoid()
            (slope if index is None else slope[index]).copy_(mask + 2 * weight**2 / _TEMPERATURE * mask * (1 - mask))
            stored.copy_(mask * weight)
    both = []
    for one in (model, plain):
        answer = outputs(one, example)
        wanted = [one.get_parameter(name) for name in slopes]
        both.append((answer.detach(), torch.autograd.grad(answer.square().mean(), wanted, allow_unused=True)))
    (soft, given), (expected, upstream) = both
    wrong = [] if far(expected, soft) < _NEAR else ["soft outputs are not those of the masked weights"]
    for (name, slope), own, other in zip(slopes.items(), given, upstream, strict=True):
        if (own is None) != (other is None):
            wrong.append(f"{name} is read masked here and not there")
        elif own is not None and not far(other.double() * slope, own) < 5e-3:
            wrong.append(f"the mask does not act in {name}")
    return wrong


def _obeys(layer: Layer) -> bool:
    groups = layer.weight.detach().movedim(input_axis(layer.sites[0]), -1).unflatten(-1, (-1, 4))
    return bool((groups.count_nonzero(dim=-1) <= 2).all())


def _kind(reason: str) -> str:
    """A refusal's reason without the names of layers, so that equal reasons can be counted."""
    return reason.partition(" (")[0]


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest number of the first tensor."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1e-12))
