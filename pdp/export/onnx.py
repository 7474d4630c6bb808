"""Exports a model as an ONNX file and checks it with onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdp.errors import Refusal, Stopped
from pdp.export.compare import TOLERANCE, steps_off
from pdp.export.inputs import dynamic_shapes
from pdp.export.integers import OPSET
from pdp.export.onnx_weights import STORED, store_weights

# The entry of a session with which onnxruntime computes products of signed weights exactly where the processor has no
# instructions for them; it changes nothing where it has.
EXACT = ("session.x64quantprecision", "1")
# The one with which products of weights of 4 bits multiply floats: onnxruntime rounds them to 8 bits by itself.
FLOATS = ("session.qdq_matmulnbits_accuracy_level", "1")


def save_onnx(model: nn.Module, inputs: Tensor | dict[str, Tensor], path: Path) -> float:
    """Writes an ONNX file for any batch size and, for text, any length; returns onnxruntime's difference to torch.

    `inputs` is one tensor, which is called "input" in the file, or a dict of tensors by name. The difference is
    measured on `inputs`, relative to the largest output.
    """
    named = inputs if isinstance(inputs, dict) else {"input": inputs}
    _write(model, named, path)
    with torch.no_grad():
        expected = model.eval()(*named.values())
    off = float((onnx_outputs(path, named) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if off > TOLERANCE:
        raise Stopped(f"onnxruntime differs from torch by {off:.2g} of the largest output: {path} is not to be used")
    return off


def save_onnx_integers(
    model: nn.Module,
    named: dict[str, Tensor],
    expected: Tensor,
    path: Path,
    bits: int,
    most: float = 1.0,
    weights: str = "uint8",
) -> float:
    """Writes a model of `with_integers(..., onnx=True)` in QDQ form; `expected` is what fake quantization gave.

    Weights of 8 bits are stored as `weights` says: "uint8" is right on every processor, "int8" on those with
    instructions for it and elsewhere in sessions with `EXACT` alone. Gives onnxruntime's difference in steps: the
    outputs' range over 255, which is what an output of 8 bits would have. Raises `Stopped` where it is more than
    `most`, `ValueError` for other `weights`.
    """
    if weights not in STORED:
        raise ValueError(f"weights={weights!r} is not one of {', '.join(STORED)}")
    _write(model, named, path, OPSET)
    store_weights(path, bits, weights)
    off = steps_off(onnx_outputs(path, named, exact=weights == "int8"), expected)
    if not off <= most:
        raise Stopped(f"onnxruntime differs from torch by {off:.2g} steps of the outputs: {path} is not to be used")
    return off


def onnx_runner(path: Path, named: dict[str, Tensor], exact: bool = False) -> Callable[[], Any]:
    """A call that runs the file on these inputs, in a plain session or in one with `EXACT` and `FLOATS`."""
    import onnxruntime

    options = _options(exact)
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    arrays = {name: value.numpy() for name, value in named.items()}
    return lambda: session.run(None, arrays)


def onnx_outputs(path: Path, named: dict[str, Tensor], exact: bool = False) -> Tensor:
    """What onnxruntime makes of the inputs, as `onnx_runner` does."""
    return torch.from_numpy(onnx_runner(path, named, exact)()[0])


def _options(exact: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if exact:
        for entry in (EXACT, FLOATS):
            options.add_session_config_entry(*entry)
    return options


def operators(path: Path, exact: bool = False) -> dict[str, int]:
    """How often each operator stands in the graph that onnxruntime runs, its own fusions made."""
    import tempfile

    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = _options(exact)
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def refuse_without_onnx() -> None:
    """Raises `Refusal` where a package that writes or checks ONNX is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise Refusal(f"format=onnx needs {name}: pip install 'pdp-pruning[export]'")


def _write(model: nn.Module, named: dict[str, Tensor], path: Path, opset: int | None = None) -> None:
    refuse_without_onnx()
    model.eval()
    values = tuple(named.values())
    with torch.no_grad():
        torch.onnx.export(
            model,
            values,
            path,
            dynamo=True,
            external_data=False,
            input_names=list(named),
            output_names=["output"],
            dynamic_shapes=dynamic_shapes(model, len(values)),
            verbose=False,
            opset_version=opset,
        )
