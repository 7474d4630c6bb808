"""Channel pruning of one model, held against itself: masked, finished and slim, beside torch-pruning's own pruner."""

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

import pdp
from pdp.benchmarks.model_zoo import CLASSES, build, parameters

RATIO = 0.5
_NOW = {"warmup": "0ep", "ramp": "1ep"}
_FAR = 1e-3  # of the largest output, in float32 through networks of any depth


class TookTooLong(BaseException):
    """The time is over; nothing in between catches it."""


def check(name: str, seconds: int = 60, peer: bool = True, most: float = 100e6) -> dict[str, Any]:
    """What became of the model: `result` is right, refused, wrong, crashed or hanging; left out above `most`."""
    try:
        if (size := parameters(name)) > most:
            return {"name": name, "result": "left out", "why": f"{size / 1e6:.0f} million parameters"}
        model, images = build(name)
    except Exception as error:
        return {"name": name, "result": "not built", "why": _line(error)}
    row: dict[str, Any] = {"name": name, "size": images.shape[-1]}
    row["parameters"] = sum(one.numel() for one in model.parameters())
    dense = copy.deepcopy(model) if peer else None
    began = time.process_time()
    try:
        with _limited(seconds):
            row |= _ours(model, images, began)
    except TookTooLong:
        row |= {"result": "hanging", "seconds": seconds}
    except Exception as error:
        row |= {"result": "crashed", "why": _line(error)}
    if dense is not None:
        try:
            with _limited(seconds // 2):
                row["peer_left"] = _peer(dense, images)
        except TookTooLong:
            row["peer_why"] = f"no end in {seconds // 2} s"
        except Exception as error:
            row["peer_why"] = _line(error)
    return row


def _ours(model: nn.Module, images: Tensor, began: float) -> dict[str, Any]:
    try:
        pruner = pdp.Pruner(
            model,
            pattern="channel",
            sparsity=RATIO,
            epochs=4,
            schedule=_NOW,
            allocation="uniform",
            example_input=images[:1],
            pattern_options={"prune_stem": True},
        )
    except pdp.Refusal as refusal:
        return {"result": "refused", "why": str(refusal)[:400], "seconds": time.process_time() - began}
    row: dict[str, Any] = {"seconds": time.process_time() - began, "couplings": len(pruner.layers)}
    row["left_dense"] = collections.Counter(pruner.skipped.values()).most_common(6)
    _randomize_norms(model)
    before = sum(one.numel() for one in model.parameters())
    pruner.start_epoch(0)
    model.eval()
    with torch.no_grad():
        with pruner.hard():
            hard = model(images)
        pruner.finalize()
        final = model(images)
        smaller = pdp.slim(model, images[:1]).model.eval()
        apart = max(_far(hard, final), _far(final, smaller(images)))
    left = sum(one.numel() for one in smaller.parameters()) / before
    return row | {"left": left, "apart": apart, "result": "right" if apart < _FAR else "wrong"}


@torch.no_grad()
def _randomize_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)


def _peer(model: nn.Module, images: Tensor) -> float:
    """The share of parameters that torch-pruning's own pruner leaves; raises where its result does not run."""
    import torch_pruning

    before = sum(one.numel() for one in model.parameters())
    sizes = ("out_features", "out_channels")
    last = [one for one in model.modules() if any(getattr(one, key, 0) == CLASSES for key in sizes)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model.eval(),
        images[:1],
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=last,
    )
    pruner.step()
    with torch.no_grad():
        outputs = model(images)
    if outputs.shape[-1] != CLASSES:
        raise ValueError(f"its outputs are {tuple(outputs.shape)}")
    return sum(one.numel() for one in model.parameters()) / before


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TookTooLong

    previous = signal.signal(signal.SIGPROF, late)
    # Of the processor's time: a busy machine changes nothing.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _far(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / one.double().abs().max().clamp(min=1e-12))


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
