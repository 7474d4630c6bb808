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
    model: nn.Module, named: dict[str, Tensor], expected: Tensor, path: Path, bits: int, most: float = 1.0
) -> float:
    """Writes a model of `with_integers(..., onnx=True)` in QDQ form; `expected` is what fake quantization gave.

    Gives onnxruntime's difference in steps: the outputs' range over 255, which is what an output of 8 bits would have.
    Raises `Stopped` where it is more than `most`.
    """
    _write(model, named, path, OPSET)
    _tidy(path, bits)
    off = steps_off(onnx_outputs(path, named), expected)
    if not off <= most:
        raise Stopped(f"onnxruntime differs from torch by {off:.2g} steps of the outputs: {path} is not to be used")
    return off


def onnx_runner(path: Path, named: dict[str, Tensor]) -> Callable[[], Any]:
    """A call that runs the file on these inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    arrays = {name: value.numpy() for name, value in named.items()}
    return lambda: session.run(None, arrays)


def onnx_outputs(path: Path, named: dict[str, Tensor]) -> Tensor:
    """What onnxruntime makes of the inputs."""
    return torch.from_numpy(onnx_runner(path, named)()[0])


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in the graph that onnxruntime runs, its own fusions made."""
    import tempfile

    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
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


def _tidy(path: Path, bits: int) -> None:
    """Drops what an exporter notes of its work, which is more than small weights take; of 4 bits stores them so.

    torch has no type of 4 bits: they are the integers that DequantizeLinear reads.
    """
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in model.graph.value_info:
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    if bits == 4:
        _as_int4(model)
    onnx.save(model, path)


def _as_int4(model: Any) -> None:
    import onnx

    read = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name in read and tensor.data_type == onnx.TensorProto.INT8:
            values = onnx.numpy_helper.to_array(tensor)
            packed = onnx.helper.make_tensor(tensor.name, onnx.TensorProto.INT4, values.shape, values.reshape(-1))
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(packed)
    for one in list(model.graph.value_info):
        if one.name in read:
            model.graph.value_info.remove(one)
