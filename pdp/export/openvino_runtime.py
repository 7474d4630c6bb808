"""An ONNX file through OpenVINO, where that is installed, with its decompression of sparse weights off or on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_BELOW = 0.05  # a layer may have a few zeros less than the whole model


def has_openvino() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("openvino") is not None


def openvino_runner(path: Path, named: dict[str, Tensor], sparsity: float | None = None) -> Callable[[], Any]:
    """A call that runs the file on these inputs and gives its outputs as a list of arrays.

    With `sparsity` integer weights with about that share of zeros are stored sparse and decompressed as they are read.
    """
    import openvino

    core = openvino.Core()
    # By itself it computes floats in bfloat16 where the processor can.
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    model = core.read_model(path)
    arrays = {name: value.numpy() for name, value in named.items()}
    model.reshape({name: list(array.shape) for name, array in arrays.items()})
    rate = 1.0 if sparsity is None else max(0.0, sparsity - _BELOW)  # of zeros, from which on; 1: never
    request = core.compile_model(model, "CPU", {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": rate}).create_infer_request()
    return lambda: list(request.infer(arrays).values())
