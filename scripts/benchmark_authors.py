"""Times methods' masks beside the operations that their authors' released code makes of the same weights, in turn.

    python scripts/benchmark_authors.py                                  ResNet-50's layers, two threads
    python scripts/benchmark_authors.py --model resnet20 --method str dnw --rounds 3 --out authors.json

A pass finds which weights stay, computes every layer's effective weight and takes gradients back to the weights, and to
scores or thresholds where the method has them. The authors' operations, written down here after their repositories:
sign(w) relu(|w| - sigmoid(s)) (RAIVNLab/STR); w times a scaled sigmoid(b m) (lolemacs/continuous-sparsification); a
sort of all magnitudes, zeros in the copy, gradients straight through (allenai/dnw); the same of scores
(huggingface/transformers, movement-pruning); zeros and ones scattered into a copy of the scores, in an order that a
sort has found once in the epoch (`MySparseConv` of zyxxmu/OptG); an argsort in groups, a mask scattered from it,
gradients with the decay of what was pruned (NM-sparsity); a top-k that zeroes each group's lowest candidates, the
product of the others' scores with what they contain, divided by itself as the mask (zyxxmu/LBC). Figures are medians
over rounds in which both have their turn; `ratio` is the median of ours over theirs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from pdp.benchmarks.benchmarking import machine, write_figures
from pdp.benchmarks.contender import Contender, seconds
from pdp.methods.method import Moment
from pdp.scripting import Parser, guarded


class _Straight(torch.autograd.Function):
    """A weight with some of its numbers set to zero; the gradient passes as it is, plus a decay of what is zero."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, kept)
        ctx.decay = decay
        return weight * kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, kept = ctx.saved_tensors
        return gradient + ctx.decay * (1 - kept) * weight if ctx.decay else gradient, None, None


class _Sorted(torch.autograd.Function):
    """The numbers with those of the least `of` set to zero, and the others to one if `ones`; straight through."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, of: Tensor, pruned: int, ones: bool) -> Tensor:
        found = values.clone()
        order = of.flatten().sort().indices
        flat = found.view(-1)
        flat[order[:pruned]] = 0
        if ones:
            flat[order[pruned:]] = 1
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient, None, None, None


class _Scattered(torch.autograd.Function):
    """A copy of the scores with zeros and ones at these places; straight through."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, zeros: Tensor, ones: Tensor) -> Tensor:
        found = scores.clone()
        flat = found.view(-1)
        flat[zeros] = 0
        flat[ones] = 1
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _Ones(torch.autograd.Function):
    """Each number over itself, and zero for zero; straight through."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        return sums / (sums + (sums == 0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _str(weight: Tensor, pruned: int, threshold: Tensor) -> Tensor:
    return torch.sign(weight) * torch.relu(weight.abs() - torch.sigmoid(threshold))


def _cs(weight: Tensor, pruned: int, scores: Tensor) -> Tensor:
    return weight * (2.0 * torch.sigmoid(100.0 * scores))


def _dnw(weight: Tensor, pruned: int, _: Tensor) -> Tensor:
    return _Sorted.apply(weight, weight.detach().abs(), pruned, False)


def _movement(weight: Tensor, pruned: int, scores: Tensor) -> Tensor:
    return weight * _Sorted.apply(scores, scores.detach(), pruned, True)


def _optg(weight: Tensor, pruned: int, scores: Tensor) -> Tensor:
    held: Any = scores
    if not hasattr(held, "order"):  # found once in an epoch
        held.order = scores.detach().flatten().sort().indices
    order = held.order
    return weight * _Scattered.apply(scores, order[:pruned], order[pruned:])


def _lbc(weight: Tensor, removed: int, scores: Tensor) -> Tensor:
    with torch.no_grad():  # before every step
        scores -= (scores == 0) * 1000
        scores.scatter_(1, torch.topk(scores, removed, dim=1, largest=False).indices, 0)
    out, inputs, *window = weight.shape
    sums = (scores * (scores != 0).type_as(scores)) @ _PAIRS
    mask = _Ones.apply(sums.reshape(out, *window, inputs))
    return mask.movedim(-1, 1) * weight


def _srste(weight: Tensor, pruned: int, _: Tensor) -> Tensor:
    magnitudes = weight.detach().abs().reshape(-1, 4)
    least = torch.argsort(magnitudes, dim=1)[:, :2]
    kept = torch.ones(magnitudes.shape).scatter_(1, least, 0).reshape(weight.shape)
    return _Straight.apply(weight, kept, 2e-4)


_PAIRS = torch.tensor([[float(index in pair) for index in range(4)] for pair in combinations(range(4), 2)])

# By method: the pattern, the authors' operation, and whether it trains "scores" as large as the weight, one "threshold"
# for each layer, a score for each of the six "candidates" of a group of four, or nothing more.
AUTHORS: dict[str, tuple[str, Callable[..., Tensor], str]] = {
    "str": ("random", _str, "threshold"),
    "cs": ("random", _cs, "scores"),
    "dnw": ("random", _dnw, ""),
    "movement": ("random", _movement, "scores"),
    "optg": ("random", _optg, "scores"),
    "srste": ("nm", _srste, ""),
    "lbc": ("nm", _lbc, "candidates"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON if --out names a file."""
    parser = Parser("benchmark_authors.py", __doc__)
    parser.add_argument("--model", default="resnet50", help="an image model (resnet50)")
    parser.add_argument("--method", nargs="+", default=list(AUTHORS), choices=list(AUTHORS), help="(all)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args(argv)
    for key in ("rounds", "threads"):
        if getattr(arguments, key) < 1:
            parser.error(f"--{key} {getattr(arguments, key)}: give a whole number from 1 up")
    torch.set_num_threads(arguments.threads)
    rows = [compared(arguments.model, method, arguments.rounds) for method in arguments.method]
    show(rows)
    if arguments.out:
        write_figures(arguments.out, machine(torch.device("cpu"), arguments.threads), rows)
        print(f"written to {arguments.out}")
    return 0


def compared(model: str, method: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a pass of ours and of theirs, and the ratio of both."""
    pattern, operation, extra = AUTHORS[method]
    sparsity = [] if pattern == "nm" else ["sparsity=0.9"]
    words = [
        f"model={model}",
        "data=imagenet",
        "data.image_size=64",
        "recipe.batch_size=2",
        "data.noise_if_absent=true",
    ]
    contender = Contender([*words, f"method={method}", f"prune={pattern}", *sparsity, "recipe.lr=1e-4", "device=cpu"])
    contender.step()
    ours, theirs = own_pass(contender), authors_pass(contender, operation, extra)
    ours(), theirs()
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in track(range(rounds), f"{model} {method}", transient=True):
        for name, work in (("ours", ours), ("theirs", theirs)):
            found[name].append(1000 * seconds(work, torch.device("cpu")))
    ratio = median(a / b for a, b in zip(found["ours"], found["theirs"], strict=True))
    weights = sum(layer.weight.numel() for layer in contender.pruner.layers)
    return {"model": model, "method": method, "pattern": pattern, "weights": weights, "ratio": ratio, "ms": found}


def own_pass(contender: Contender) -> Callable[[], None]:
    """Which weights stay, effective weights and gradients, as in a step of training."""
    pruner = contender.pruner
    members = [(layer, member) for layer in pruner.layers for member in layer.members]
    trained = [*(member.tensor for _, member in members), *pruner.method.extras.values()]
    upstream: list[Tensor] = []

    def work() -> None:
        moment = Moment(pruner.epoch or 0, pruner.steps, pruner.fraction)
        with torch.no_grad():
            pruner.method.update(pruner.layers, moment)
        pruner.method.begin_forward(pruner.layers)
        effective = [pruner.method.effective_weight(layer, member.tensor, member) for layer, member in members]
        pruner.method.end_forward()
        upstream[:] = upstream or [torch.randn_like(one) for one in effective]
        torch.autograd.backward(effective, upstream)
        with torch.no_grad():
            pruner.method.after_backward(pruner.layers, moment)
        for one in trained:
            one.grad = None

    return work


def authors_pass(contender: Contender, operation: Callable[..., Tensor], extra: str) -> Callable[[], None]:
    """The same of the authors' operations, on copies of the weights."""
    layers = contender.pruner.layers
    weights = [layer.weight.detach().clone().requires_grad_() for layer in layers]
    pruned = [layer.pruned for layer in layers]
    extras = [torch.empty(0)] * len(weights)
    if extra:
        extras = [_extra(extra, one).requires_grad_() for one in weights]
    if extra == "candidates":
        method: Any = contender.pruner.method
        pruned = [len(_PAIRS) - method.left] * len(weights)
    upstream = [torch.randn_like(one) for one in weights]

    def work() -> None:
        effective = [operation(*one) for one in zip(weights, pruned, extras, strict=True)]
        torch.autograd.backward(effective, upstream)
        for one in (*weights, *extras):
            one.grad = None

    return work


def _extra(kind: str, weight: Tensor) -> Tensor:
    """What is trained beside a weight."""
    if kind == "threshold":
        return torch.full((1, 1), -5.0)
    if kind == "candidates":
        return (
            torch.full((weight.numel() // 4, len(_PAIRS)), 1 / 3) + torch.randn(weight.numel() // 4, len(_PAIRS)) / 100
        )
    return torch.randn_like(weight) * 0.01


def show(rows: list[dict[str, Any]]) -> None:
    """One line for each method."""
    table = Table("model", "method", "pattern", "ours ms", "theirs ms", "ratio")
    for row in rows:
        times = [f"{median(row['ms'][name]):.1f}" for name in ("ours", "theirs")]
        table.add_row(row["model"], row["method"], row["pattern"], *times, f"{row['ratio']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(guarded("benchmark_authors.py", lambda: main(sys.argv[1:])))
