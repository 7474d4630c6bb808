"""Checks that random and N:M pruning of a model follow the formula of the paper."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pdp.benchmarks.model_checks import zoo
from pdp.cost import count_macs
from pdp.errors import Refusal
from pdp.layers import is_conv1d
from pdp.pruner.pruner import Pruner

names = zoo.names
NOW = {"name": "constant"}
_LARGEST = 500_000_000  # parameters
_NEAR = 2e-4  # tolerance relative to the largest number: float32 through a hundred layers


def check(name: str) -> dict[str, Any]:
    """Status "works" or "wrong", what was wrong, the prunable share, and why the other weights stay dense."""
    model, images = zoo.build(name)
    size = sum(one.numel() for one in model.parameters())
    if size > _LARGEST:
        why = f"not tried: {size / 1e6:.0f} M parameters, of which the check holds seven copies"
        return {"status": "too large", "wrong": [], "why": why, "input": list(images.shape[1:])}
    found = check_model(model, images)
    if found["wrong"]:
        # A deep model amplifies float32's rounding; what is really wrong is so in float64 as well.
        found = check_model(model.double(), images.double()) | {"dtype": "float64"}
    return found


def check_model(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """`check` of a given model in evaluation mode; leaves it unchanged."""
    wrong: list[str] = []
    found: dict[str, Any] = {"input": list(images.shape[1:]), "weights": sum(one.numel() for one in model.parameters())}
    frame = count_macs(model, images[:1])
    wrong += _macs(model, images[:1], frame)
    found["macs"] = int(frame.macs.sum())
    found["uncounted"] = frame.attrs["uncounted"]
    for pattern in ("random", "2:4"):
        try:
            told = _pattern(copy.deepcopy(model), images, pattern)
        except Refusal as error:
            found[pattern] = {"refused": str(error)[:300]}
            continue
        wrong += [f"{pattern}: {one}" for one in told.pop("wrong")]
        found[pattern] = told
    refused = all("refused" in found[pattern] for pattern in ("random", "2:4"))
    return {"status": "wrong" if wrong else "refused" if refused else "works", "wrong": wrong, **found}


def _macs(model: nn.Module, images: Tensor, frame: Any) -> list[str]:
    recurrent = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
        for key in module._parameters
    }
    others = sum(count for name, count in frame.attrs["macs_other"].items() if name not in recurrent)
    mine = int(frame.macs.sum()) + frame.attrs["macs_attention"] + others
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        # With gradients enabled, because FlopCounterMode's module tracker otherwise fails on models whose inputs are
        # views.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    theirs = counter.get_total_flops() // 2
    return [] if mine == theirs else [f"{mine} multiply-adds, PyTorch's counter has {theirs}"]


def _pattern(model: nn.Module, images: Tensor, pattern: str) -> dict[str, Any]:
    wrong: list[str] = []
    plain = copy.deepcopy(model)
    share = None if pattern == "2:4" else 0.6
    pruner = Pruner(model, pattern=pattern, sparsity=share, epochs=1, schedule=NOW, temperature=1e-4)
    pruner.start_epoch(0)
    total = sum(layer.units for layer in pruner.layers)
    pruned = sum(layer.pruned for layer in pruner.layers)
    if pruned != (total // 2 if share is None else int(share * total + 0.5)):
        wrong.append(f"{pruned} of {total} units pruned")
    soft, slopes = _run(model, images, [layer.weight for layer in pruner.layers])
    wrong += _against_formula(pruner, plain, images, soft, slopes)
    unused = [layer.name for layer, slope in zip(pruner.layers, slopes, strict=True) if slope is None]
    with torch.no_grad(), pruner.hard():
        hard = _forward(model, images)
    pruner.finalize()
    with torch.no_grad():
        final = _forward(model, images)
    if not _close(hard, final):
        wrong.append("hard() and finalize() differ")
    zeros = sum(int((layer.weight == 0).sum()) for layer in pruner.layers)
    stood = sum(int((plain.get_parameter(layer.parameter) == 0).sum()) for layer in pruner.layers)
    if zeros != pruned and not stood:
        wrong.append(f"{zeros} zeros for {pruned} pruned weights")
    if pattern == "2:4" and not all(_obeys(layer) for layer in pruner.layers):
        wrong.append("a group has more than two weights left")
    reasons: dict[str, int] = {}
    for reason in pruner.skipped.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "wrong": wrong,
        "layers": len(pruner.layers),
        "prunable": round(pruner.prunable_share, 4),
        "left": reasons,
        "unused": unused,
    }


def _against_formula(
    pruner: Pruner, plain: nn.Module, images: Tensor, soft: Tensor, slopes: list[Tensor | None]
) -> list[str]:
    """A model with the masked weights as its parameters must compute the same; gradients must follow the formula."""
    masks: list[Tensor] = []
    with torch.no_grad():
        for layer in pruner.layers:
            weight = layer.weight.detach()
            if not layer.active:  # the global cut prunes nothing in this layer
                masks.append(torch.ones_like(weight, dtype=torch.float64))
                continue
            cut = pruner.pattern.spread(layer.state["cut"], layer, layer.members[0], weight)
            z = ((weight.double() ** 2 - (cut.double() * cut.double().abs())) / 1e-4).clamp(-60, 60)
            mask = z.sigmoid()
            plain.get_parameter(layer.parameter).copy_(mask * weight)
            masks.append(mask + 2 * weight.double() ** 2 / 1e-4 * mask * (1 - mask))
    expected, upstream = _run(plain, images, [plain.get_parameter(layer.parameter) for layer in pruner.layers])
    wrong = [] if _close(soft, expected) else ["soft outputs are not those of the masked weights"]
    for layer, slope, mask, given in zip(pruner.layers, slopes, masks, upstream, strict=True):
        if (slope is None) != (given is None):
            wrong.append(f"{layer.name} is read masked here and not there")
        elif slope is not None and given is not None and not _close(slope, given.double() * mask, 5e-3):
            wrong.append(f"the mask does not act in {layer.name}")
    return wrong


def _run(model: nn.Module, images: Tensor, weights: list[nn.Parameter]) -> tuple[Tensor, list[Tensor | None]]:
    outputs = _forward(model, images)
    return outputs.detach(), list(torch.autograd.grad(outputs.square().mean(), weights, allow_unused=True))


def _forward(model: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(0)
    outputs = model(images)
    if isinstance(outputs, Tensor):
        return outputs
    return outputs[0] if isinstance(outputs, (tuple, list)) else next(iter(outputs.values()))


def _close(one: Tensor, other: Tensor, within: float = _NEAR) -> bool:
    largest = float(other.double().abs().max())
    return float((one.double() - other.double()).abs().max()) <= within * max(largest, 1e-12)


def _obeys(layer: Any) -> bool:
    weight = layer.weight.detach()
    groups = weight.movedim(0 if is_conv1d(layer.sites[0].module) else 1, -1).unflatten(-1, (-1, 4))
    return bool((groups.count_nonzero(dim=-1) <= 2).all())
