"""Exports a model as an ONNX file and checks it with onnxruntime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from pdp.errors import Refusal, Stopped
from pdp.export.compare import TOLERANCE
from pdp.export.inputs import dynamic_shapes


def save_onnx(model: nn.Module, inputs: Tensor | dict[str, Tensor], path: Path) -> float:
    """Writes an ONNX file for any batch size and, for text, any length; returns onnxruntime's difference to torch.

    `inputs` is one tensor, which is called "input" in the file, or a dict of tensors by name. The difference is
    measured on `inputs`, relative to the largest output.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise Refusal(f"format=onnx needs {name}: pip install 'pdp-pruning[export]'")
    import onnxruntime

    model.eval()
    named = inputs if isinstance(inputs, dict) else {"input": inputs}
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
        )
        expected = model(*values)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in named.items()})
    off = float((torch.from_numpy(output) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if off > TOLERANCE:
        raise Stopped(f"onnxruntime differs from torch by {off:.2g} of the largest output: {path} is not to be used")
    return off
