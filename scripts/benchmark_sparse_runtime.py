"""Random zeros in a linear layer through runtimes that may use them, timed in turn on this processor.

python scripts/benchmark_sparse_runtime.py     1024 x 1024, zeros 80 to 95 %, batches 1 and 64
python scripts/benchmark_sparse_runtime.py --sizes 768x3072 --sparsities 0.9 --batches 1 128 --json sparse.json

A row is a layer of (outputs)x(inputs) with that share of zeros, drawn at random, and a batch. Contenders: torch's dense
product, its CSR and BSR products (BSR of blocks of 4x4, with zeros drawn in whole blocks);
onnxruntime in float32 and in int8 (QDQ); OpenVINO in int8, its decompression of sparse weights off and on (pip
install openvino; it is left out where it is missing). Times are milliseconds, medians of rounds in which each has its
turn. Nothing is hidden: where zeros cost time, the table says so. Run it on a quiet machine.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from pdp.export.integers import with_integers
from pdp.export.latency import in_turn, processor
from pdp.export.onnx import onnx_runner, save_onnx, save_onnx_integers
from pdp.quantize.fake import weight_scale
from pdp.quantize.frozen import Frozen
from pdp.scripting import Parser, guarded

_DENSE = "torch dense"
_BLOCK = (4, 4)  # torch's products on a CPU take square ones alone


def main(arguments: list[str]) -> int:
    """Times every row and prints one table; returns the exit code."""
    parser = Parser("benchmark_sparse_runtime.py", __doc__)
    parser.add_argument("--sizes", nargs="+", default=["1024x1024"], help="outputs x inputs of a layer (1024x1024)")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95], help="shares of zeros")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64], help="samples at once (1 64)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of which the median counts (9)")
    parser.add_argument("--json", type=Path, help="writes the numbers there as well")
    values = parser.parse_args(arguments)
    for size in values.sizes:
        if not all(one.isdigit() and int(one) % _BLOCK[0] == 0 for one in size.split("x")) or size.count("x") != 1:
            parser.error(f"--sizes {size}: give outputs x inputs, multiples of {_BLOCK[0]}, such as 1024x1024")
    if not all(0 <= one < 1 for one in values.sparsities):
        parser.error(f"--sparsities {values.sparsities}: give shares from 0 to below 1")
    warnings.filterwarnings("ignore", message="Sparse")
    print(processor())
    rows = []
    for size in values.sizes:
        outputs, inputs = map(int, size.split("x"))
        for sparsity in values.sparsities:
            for batch in values.batches:
                rows.append(
                    {"size": size, "sparsity": sparsity, "batch": batch}
                    | timed(outputs, inputs, sparsity, batch, values.rounds)
                )
                show(rows[-1])
    if values.json:
        values.json.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


def timed(outputs: int, inputs: int, sparsity: float, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each contender, and in `off` the largest difference of its product to the dense one, over it."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    blocks = layer.weight.clone()
    layer.weight[torch.rand(outputs, inputs) < sparsity] = 0
    gone = torch.rand(outputs // _BLOCK[0], inputs // _BLOCK[1]) < sparsity
    blocks[gone.repeat_interleave(_BLOCK[0], 0).repeat_interleave(_BLOCK[1], 1)] = 0
    samples = torch.rand(batch, inputs)
    with tempfile.TemporaryDirectory() as folder:
        contenders = made(layer, blocks, samples, sparsity, Path(folder))
        expected = layer(samples)
        off = {}
        for name, call in contenders.items():
            found = call()
            found = found if isinstance(found, Tensor) else torch.as_tensor(next(iter(found)))
            of = torch.nn.functional.linear(samples, blocks, layer.bias) if "BSR" in name else expected
            off[name] = float((found.reshape(of.shape) - of).abs().max() / of.abs().max())
        times = in_turn(contenders, rounds)
    return {"milliseconds": times, "off": off}


def made(
    layer: nn.Linear, blocks: Tensor, samples: Tensor, sparsity: float, folder: Path
) -> dict[str, Callable[[], Any]]:
    """A call of each contender that is at hand."""
    csr, bsr = layer.weight.to_sparse_csr(), blocks.to_sparse_bsr(_BLOCK)
    turned, bias = samples.T.contiguous(), layer.bias[:, None]
    found: dict[str, Callable[[], Any]] = {
        _DENSE: lambda: layer(samples),
        "torch CSR": lambda: (csr @ turned + bias).T,
        f"torch BSR {_BLOCK[0]}x{_BLOCK[1]}": lambda: (bsr @ turned + bias).T,
    }
    named = {"input": samples}
    model = nn.Sequential(layer)
    save_onnx(model, samples, folder / "float.onnx")
    scale = torch.tensor(1 / 255)
    weights, inputs = {"0.weight": weight_scale(layer.weight, 8)}, {"0.input": (scale, torch.tensor(0.0))}
    frozen = Frozen("int8", 8, weights, inputs)
    with frozen.applied(model):
        expected = model(samples)
    save_onnx_integers(with_integers(model, frozen, samples, onnx=True), named, expected, folder / "int8.onnx", 8)
    found["onnxruntime float32"] = onnx_runner(folder / "float.onnx", named)
    found["onnxruntime int8"] = onnx_runner(folder / "int8.onnx", named)
    if importlib.util.find_spec("openvino") is not None:
        found |= openvino_runners(folder / "int8.onnx", samples, sparsity)
    return found


def openvino_runners(path: Path, samples: Tensor, sparsity: float) -> dict[str, Callable[[], Any]]:
    """The file through OpenVINO, without and with sparse weights that are decompressed as they are read."""
    import openvino

    core, array = openvino.Core(), samples.numpy()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    found: dict[str, Callable[[], Any]] = {}
    for name, rate in (("OpenVINO int8", 1.0), ("OpenVINO int8, sparse", max(0.0, sparsity - 0.05))):
        model = core.read_model(path)
        model.reshape(list(array.shape))
        request = core.compile_model(
            model, "CPU", {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": rate}
        ).create_infer_request()
        found[name] = partial(_infer, request, array)
    return found


def _infer(request: Any, array: Any) -> Any:
    return request.infer([array]).values()


def show(row: dict[str, Any]) -> None:
    """A row for people: each contender's milliseconds and how many times as fast as the dense product it is."""
    print(f"\n{row['size']}, {row['sparsity']:.0%} zeros, batch {row['batch']}")
    dense = row["milliseconds"][_DENSE]
    for name, time in row["milliseconds"].items():
        print(f"  {name:<24}{time:>10.4f} ms{dense / time:>8.2f} x   off {row['off'][name]:.1e}")


if __name__ == "__main__":
    sys.exit(guarded("benchmark_sparse_runtime.py", lambda: main(sys.argv[1:])))
