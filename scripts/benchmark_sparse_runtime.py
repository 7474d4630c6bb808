"""Zeros in a linear layer, single ones and blocks, through runtimes that may use them, timed in turn on this processor.

python scripts/benchmark_sparse_runtime.py     1024 x 1024, zeros 80 to 95 %, batches 1 and 64
python scripts/benchmark_sparse_runtime.py --sizes 768x3072 --sparsities 0.9 --batches 1 128 --json sparse.json
python scripts/benchmark_sparse_runtime.py --blocks 4x1 8x1 32x32

A row is a layer of (outputs)x(inputs) with that share of zeros and a batch. Contenders: torch's dense product; its CSR
product of zeros drawn at random; and of a layer that prune=block has pruned, for each size in --blocks, its CSR and BSR
products. On a CPU torch multiplies BSR of square blocks alone, so blocks of 4x1 are stored in tiles of 4x4 that hold
them: a tile is left out where all of its blocks are gone. onnxruntime in float32 and in int8 (QDQ), and OpenVINO in
int8 with its decompression of sparse weights off and on, have the zeros drawn at random (pip install openvino; it is
left out where it is missing). Times are milliseconds, medians of rounds in which each has its
turn. Nothing is hidden: where zeros cost time, the table says so. Run it on a quiet machine.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from pdp import Pruner
from pdp.benchmarks.benchmarking import machine, write_figures
from pdp.export.integers import with_integers
from pdp.export.latency import in_turn, processor
from pdp.export.onnx import onnx_runner, save_onnx, save_onnx_integers
from pdp.export.openvino_runtime import has_openvino, openvino_runner
from pdp.quantize.fake import weight_scale
from pdp.quantize.frozen import Frozen
from pdp.scripting import Parser, guarded

_DENSE = "torch dense"
Contender = tuple[Callable[[], Any], Tensor]  # a product, and the dense weight that it must equal


def main(arguments: list[str]) -> int:
    """Times every row and prints one table; returns the exit code."""
    parser = Parser("benchmark_sparse_runtime.py", __doc__)
    parser.add_argument("--sizes", nargs="+", default=["1024x1024"], help="outputs x inputs of a layer (1024x1024)")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95], help="shares of zeros")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64], help="samples at once (1 64)")
    parser.add_argument("--blocks", nargs="+", default=["4x1", "4x4", "32x32"], help="rows x columns (4x1 4x4 32x32)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of which the median counts (9)")
    parser.add_argument("--json", type=Path, help="writes the numbers there as well")
    values = parser.parse_args(arguments)
    for key, given, example in (("sizes", values.sizes, "1024x1024"), ("blocks", values.blocks, "4x1")):
        for one in given:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", one):
                parser.error(f"--{key} {one}: give two numbers from 1 up, such as {example}")
    blocks = [_pair(one) for one in values.blocks]
    for size in values.sizes:
        for block in blocks:
            if any(one % max(block) for one in _pair(size)):
                parser.error(f"--sizes {size}: give multiples of {max(block)}, which --blocks has, or other --blocks")
    if not all(0 <= one < 1 for one in values.sparsities):
        parser.error(f"--sparsities {values.sparsities}: give shares from 0 to below 1")
    warnings.filterwarnings("ignore", message="Sparse")
    print(processor())
    rows = []
    for size in values.sizes:
        outputs, inputs = _pair(size)
        for sparsity in values.sparsities:
            for batch in values.batches:
                rows.append(
                    {"size": size, "sparsity": sparsity, "batch": batch}
                    | timed(outputs, inputs, sparsity, batch, blocks, values.rounds)
                )
                show(rows[-1])
    if values.json:
        write_figures(values.json, machine(torch.device("cpu")) | {"instructions": processor()}, rows)
        print(f"written to {values.json}")
    return 0


def _pair(size: str) -> tuple[int, int]:
    first, _, second = size.partition("x")
    return int(first), int(second)


def timed(
    outputs: int, inputs: int, sparsity: float, batch: int, blocks: list[tuple[int, int]], rounds: int
) -> dict[str, Any]:
    """Milliseconds of each contender, and in `off` the largest difference of its product to the dense one, over it."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    dense = layer.weight.clone()
    layer.weight[torch.rand(outputs, inputs) < sparsity] = 0
    samples = torch.rand(batch, inputs)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {name: (call, layer.weight) for name, call in made(layer, samples, sparsity, Path(folder)).items()}
        for block in blocks:
            contenders |= in_blocks(dense, layer.bias, samples, sparsity, block)
        off = {}
        for name, (call, weight) in contenders.items():
            found = call()
            found = found if isinstance(found, Tensor) else torch.as_tensor(next(iter(found)))
            of = nn.functional.linear(samples, weight, layer.bias)
            off[name] = float((found.reshape(of.shape) - of).abs().max() / of.abs().max())
        times = in_turn({name: call for name, (call, _) in contenders.items()}, rounds)
    return {"milliseconds": times, "off": off}


def in_blocks(
    dense: Tensor, bias: Tensor, samples: Tensor, sparsity: float, block: tuple[int, int]
) -> dict[str, Contender]:
    """torch's sparse products of the layer as prune=block leaves it."""
    layer = nn.Linear(dense.shape[1], dense.shape[0], bias=False)
    layer.weight.data.copy_(dense)
    options = {"block": list(block)}
    pruner = Pruner(layer, "oneshot", "block", sparsity, epochs=0, pattern_options=options)
    pruner.at_once()
    pruner.finalize()
    weight, turned, added = layer.weight.detach(), samples.T.contiguous(), bias[:, None]
    side, said = max(block), f"blocks {block[0]}x{block[1]}"
    csr, bsr = weight.to_sparse_csr(), weight.to_sparse_bsr((side, side))
    return {
        f"torch CSR, {said}": (lambda: (csr @ turned + added).T, weight),
        f"torch BSR {side}x{side}, {said}": (lambda: (bsr @ turned + added).T, weight),
    }


def made(layer: nn.Linear, samples: Tensor, sparsity: float, folder: Path) -> dict[str, Callable[[], Any]]:
    """A call of each contender that is at hand, with the layer's single zeros."""
    csr = layer.weight.to_sparse_csr()
    turned, bias = samples.T.contiguous(), layer.bias[:, None]
    found: dict[str, Callable[[], Any]] = {
        _DENSE: lambda: layer(samples),
        "torch CSR": lambda: (csr @ turned + bias).T,
    }
    named = {"input": samples}
    model = nn.Sequential(layer)
    save_onnx(model, samples, folder / "float.onnx")
    scale = torch.tensor(1 / 255)
    weights, inputs = {"0.weight": weight_scale(layer.weight, 8)}, {"0.input": (scale, torch.tensor(0.0))}
    frozen = Frozen("int8", 8, weights, inputs)
    with frozen.applied(model):
        expected = model(samples)
    integers = with_integers(model, frozen, samples, onnx=True)
    save_onnx_integers(integers, named, expected, folder / "int8.onnx", 8, weights="int8")
    found["onnxruntime float32"] = onnx_runner(folder / "float.onnx", named)
    found["onnxruntime int8"] = onnx_runner(folder / "int8.onnx", named, exact=True)
    if has_openvino():
        found["OpenVINO int8"] = openvino_runner(folder / "int8.onnx", named)
        found["OpenVINO int8, sparse"] = openvino_runner(folder / "int8.onnx", named, sparsity)
    return found


def show(row: dict[str, Any]) -> None:
    """A row for people: each contender's milliseconds and how many times as fast as the dense product it is."""
    print(f"\n{row['size']}, {row['sparsity']:.0%} zeros, batch {row['batch']}")
    dense = row["milliseconds"][_DENSE]
    for name, time in row["milliseconds"].items():
        print(f"  {name:<30}{time:>10.4f} ms{dense / time:>8.2f} x   off {row['off'][name]:.1e}")


if __name__ == "__main__":
    sys.exit(guarded("benchmark_sparse_runtime.py", lambda: main(sys.argv[1:])))
