"""Checks channel pruning of a model: masked, finalized and slim models must agree; compares with torch-pruning."""

from __future__ import annotations

import collections
import copy
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pdp.benchmarks.model_checks import zoo
from pdp.errors import Refusal
from pdp.export.slim import slim
from pdp.pruner.pruner import Pruner

RATIO = 0.5
_NOW = {"name": "constant"}
_FAR = 1e-3  # largest allowed difference relative to the largest output, in float32 and for any depth
_LIMIT = 60  # seconds of processor time for torch-pruning, whose graph may grow without end
_CLASSES = 10


def names() -> list[str]:
    """The names of the models in the zoo, and of some that have failed before."""
    more = ("convnext_atto", "convnextv2_atto", "mixnet_s", "dm_nfnet_f0", "nf_regnet_b0", "skresnet18", "ghostnet_050")
    return list(dict.fromkeys([*zoo.names(), *(f"timm/{one}" for one in more)]))


def check(name: str) -> dict[str, Any]:
    """Status "works", "wrong" or "refused", and the share of parameters left when half of each layer's channels go."""
    model, image = zoo.build(name)
    return check_model(model, image, peer=True)


def check_model(model: nn.Module, image: Tensor, peer: bool = False) -> dict[str, Any]:
    """`check` of a given model in evaluation mode; changes the model."""
    found: dict[str, Any] = {"input": list(image.shape[1:]), "weights": sum(one.numel() for one in model.parameters())}
    dense = copy.deepcopy(model)
    found |= _ours(model, image)
    return found | (_peer(dense, image) if peer else {})


def _ours(model: nn.Module, image: Tensor) -> dict[str, Any]:
    began = time.process_time()
    try:
        pruner = Pruner(
            model,
            pattern="channel",
            sparsity=RATIO,
            epochs=1,
            schedule=_NOW,
            allocation="uniform",
            example_input=image,
            pattern_options={"prune_stem": True},
        )
    except Refusal as refusal:
        return {"status": "refused", "wrong": [], "why": str(refusal)[:400], "cpu": time.process_time() - began}
    found: dict[str, Any] = {"cpu": round(time.process_time() - began, 2), "couplings": len(pruner.layers)}
    found["left_dense"] = collections.Counter(_kind(one) for one in pruner.skipped.values()).most_common(5)
    _randomize_norms(model)
    before = sum(one.numel() for one in model.parameters())
    images = torch.cat([image, image.flip(-1) * 0.7])
    pruner.start_epoch(0)
    model.eval()
    with torch.no_grad():
        with pruner.hard():
            hard = _tensor(model(images))
        pruner.finalize()
        final = _tensor(model(images))
        smaller = slim(model, image).model.eval()
        small = _tensor(smaller(images))
    found["left"] = round(sum(one.numel() for one in smaller.parameters()) / before, 4)
    pairs = (("hard() and finalize()", hard, final), ("finalize() and slim", final, small))
    wrong = [f"{what} differ by {_far(one, other):.2g}" for what, one, other in pairs if not _far(one, other) < _FAR]
    return found | {"status": "wrong" if wrong else "works", "wrong": wrong}


def _kind(reason: str) -> str:
    """A refusal's reason without the names of layers, so that equal reasons can be counted."""
    return reason.partition(" (")[0]


@torch.no_grad()
def _randomize_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)


def _peer(model: nn.Module, image: Tensor) -> dict[str, Any]:
    """The share of parameters that torch-pruning's own pruner leaves, or the reason why its result does not run."""
    try:
        import torch_pruning

        with _limited(_LIMIT):
            before = sum(one.numel() for one in model.parameters())
            sizes = ("out_features", "out_channels")
            last = [one for one in model.modules() if any(getattr(one, key, 0) == _CLASSES for key in sizes)]
            importance = torch_pruning.importance.MagnitudeImportance()
            torch_pruning.pruner.MagnitudePruner(
                model.eval(), image, importance=importance, pruning_ratio=RATIO, ignored_layers=last
            ).step()
            with torch.no_grad():
                outputs = _tensor(model(image))
        if outputs.shape[-1] != _CLASSES:
            return {"peer_why": f"its outputs are {tuple(outputs.shape)}"}
        return {"peer_left": round(sum(one.numel() for one in model.parameters()) / before, 4)}
    except _TookTooLong:
        return {"peer_why": f"no end in {_LIMIT} s"}
    except Exception as error:
        return {"peer_why": " ".join(f"{type(error).__name__}: {error}".split())[:150]}


class _TookTooLong(BaseException):
    """The time limit is reached; a BaseException, so that no code in between catches it."""


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _TookTooLong

    previous = signal.signal(signal.SIGPROF, late)
    # Counts processor time, so that a busy machine does not matter.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, (tuple, list)) else next(iter(output.values()))


def _far(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1e-12))
