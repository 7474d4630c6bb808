"""Zeros in linear layers on a GPU: 2:4 and blocks through torch's sparse products, beside dense and slim ones, in turn.

    python scripts/benchmark_sparse_gpu.py                                  768x3072, 4096x4096; 64 to 16384 samples
    python scripts/benchmark_sparse_gpu.py --sizes 8192x8192 --batches 4096 --out sparse.json
    python scripts/benchmark_sparse_gpu.py --bert 64 --length 128           and BERT-base's encoder, whole

A row is a layer of (outputs)x(inputs) in float16 with a batch. Contenders: the dense product; torch's semi-structured
product of a layer that prune=nm has pruned to 2:4; a dense layer with half the outputs, as a slim export has it; and
torch's BSR product of a layer that prune=block has pruned in blocks of 32x32, half and 90 % of them gone. A sparse
product that torch refuses for a shape is told with its reason. Times are milliseconds of a product, medians of rounds
in which each has its turn; `off` is the largest difference to the dense product of the same weights over its largest.
Where zeros cost time, the table says so. Needs a GPU of compute capability 8.0 or up.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from rich.console import Console
from torch import Tensor, nn

from pdp import Pruner
from pdp.benchmarks.benchmarking import machine, write_figures
from pdp.export.latency import in_turn
from pdp.scripting import Parser, guarded

_DENSE = "dense"
_CALLS = 10  # products between two waits for the device
Contender = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # a product, and the dense one that it must equal


def main(argv: Sequence[str] | None = None) -> int:
    """Times every row, prints it, and writes JSON if --out names a file."""
    parser = Parser("benchmark_sparse_gpu.py", __doc__)
    parser.add_argument("--sizes", nargs="+", default=["768x3072", "4096x4096"], help="outputs x inputs of a layer")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 1024, 16384], help="samples at once")
    parser.add_argument("--bert", type=int, help="BERT-base's encoder, dense and 2:4, with this batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of each of --bert's samples (128)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of which the median counts (9)")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args(argv)
    for size in arguments.sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size) or any(int(one) % 64 for one in size.split("x")):
            parser.error(f"--sizes {size}: give two multiples of 64, such as 4096x4096")
    if min([*arguments.batches, arguments.bert or 1]) < 1:
        parser.error("--batches, --bert: give whole numbers from 1 up")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        parser.error("2:4 products need a CUDA device of compute capability 8.0 or up, and none is at hand")
    warnings.filterwarnings("ignore", message=".*(Sparse|sparse|prototype)")
    torch.manual_seed(0)
    rows = []
    for size in arguments.sizes:
        outputs, inputs = (int(one) for one in size.split("x"))
        for batch in arguments.batches:
            found, refused = of_layer(outputs, inputs, batch)
            rows.append(
                {"what": f"linear {size}", "batch": batch} | timed(found, arguments.rounds) | {"refused": refused}
            )
            show(rows[-1])
    if arguments.bert:
        found = of_bert(arguments.bert, arguments.length)
        what = f"BERT-base, {arguments.length} tokens"
        rows.append({"what": what, "batch": arguments.bert} | timed(found, arguments.rounds) | {"refused": {}})
        show(rows[-1])
    if arguments.out:
        write_figures(arguments.out, machine(torch.device("cuda")), rows)
        print(f"written to {arguments.out}")
    return 0


def of_layer(outputs: int, inputs: int, batch: int) -> tuple[dict[str, Contender], dict[str, str]]:
    """Every contender of a layer, and those that torch refuses with what it says."""
    samples = torch.randn(batch, inputs, device="cuda", dtype=torch.float16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.float16) / inputs**0.5
    product = nn.functional.linear
    half = weight[: outputs // 2].contiguous()
    found: dict[str, Contender] = {
        _DENSE: (partial(product, samples, weight),) * 2,
        "slim, half the outputs": (partial(product, samples, half),) * 2,
    }
    refused: dict[str, str] = {}
    for name, dense, form in (
        ("2:4", pruned(weight, "nm", 0.5, {"n": 2, "m": 4}), torch.sparse.to_sparse_semi_structured),
        ("BSR, half the blocks 32x32", pruned(weight, "block", 0.5, {"block": [32, 32]}), _bsr),
        ("BSR, a tenth of the blocks 32x32", pruned(weight, "block", 0.9, {"block": [32, 32]}), _bsr),
    ):
        try:
            sparse = form(dense)
            product(samples, sparse)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            refused[name] = str(error).splitlines()[0]
            continue
        found[name] = (partial(product, samples, sparse), partial(product, samples, dense))
    return found, refused


def _bsr(weight: Tensor) -> Tensor:
    return weight.to_sparse_bsr((32, 32))


def pruned(weight: Tensor, pattern: str, sparsity: float, options: dict[str, Any]) -> Tensor:
    """The weight as a finished run of that pattern leaves it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=torch.float32)
    layer.weight.data.copy_(weight)
    pruner = Pruner(layer, "oneshot", pattern, sparsity, epochs=0, pattern_options=options)
    pruner.at_once()
    pruner.finalize()
    return layer.weight.detach().to(weight.dtype)


def of_bert(batch: int, length: int) -> dict[str, Contender]:
    """BERT-base's encoder with random weights, its linear layers dense and 2:4."""
    from transformers import BertConfig, BertModel

    dense = BertModel(BertConfig()).cuda().half().eval().requires_grad_(False)
    zeros, tokens = deepcopy(dense), torch.randint(0, 30000, (batch, length), device="cuda")
    sparse = deepcopy(zeros)
    for ours, theirs in zip(zeros.encoder.modules(), sparse.encoder.modules(), strict=True):
        if isinstance(ours, nn.Linear):
            ours.weight.data.copy_(pruned(ours.weight, "nm", 0.5, {"n": 2, "m": 4}))
            theirs.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(ours.weight.data), requires_grad=False)

    def call(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return model(tokens).last_hidden_state

    return {
        _DENSE: (lambda: call(dense), lambda: call(dense)),
        "2:4": (lambda: call(sparse), lambda: call(zeros)),
    }


def timed(found: dict[str, Contender], rounds: int) -> dict[str, Any]:
    """Milliseconds of each contender, and in `off` the largest difference to its dense product."""
    off = {}
    for name, (call, dense) in found.items():
        expected = dense().float()
        off[name] = float((call().float() - expected).abs().max() / expected.abs().max())

    def waited(call: Callable[[], Tensor]) -> Callable[[], None]:
        def several() -> None:
            for _ in range(_CALLS):
                call()
            torch.cuda.synchronize()

        return several

    times = in_turn({name: waited(call) for name, (call, _) in found.items()}, rounds)
    return {"milliseconds": {name: time / _CALLS for name, time in times.items()}, "off": off}


def show(row: dict[str, Any]) -> None:
    """A row for people: each contender's milliseconds and how many times as fast as the dense product it is."""
    told = Console(highlight=False, soft_wrap=True).print
    told(f"\n{row['what']}, batch {row['batch']}")
    dense = row["milliseconds"][_DENSE]
    for name, time in row["milliseconds"].items():
        told(f"  {name:<34}{time:>10.4f} ms{dense / time:>8.2f} x   off {row['off'][name]:.1e}")
    for name, why in row["refused"].items():
        told(f"  {name:<34}refused by torch: {why}", markup=False)


if __name__ == "__main__":
    sys.exit(guarded("benchmark_sparse_gpu.py", lambda: main(sys.argv[1:])))
