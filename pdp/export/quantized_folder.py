"""A quantized model on the disk: integers and scales, and the code that loads them into the plain model."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.export import quantized_loader
from pdp.quantize.frozen import Frozen
from pdp.quantize.sizes import packed


def save_quantized(model: nn.Module, frozen: Frozen, folder: Path, origin: dict[str, Any]) -> None:
    """model.safetensors, model.json and load_quantized.py.

    Weights are int8 under their dense names, of 4 bits two in a byte (uint8); scales, zero points and everything else
    lie beside them as floats. Biases are those that products of integers add.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    stored: dict[int, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict().items():
        key = id(parameters.get(name, value))
        if key in stored:
            continue  # a weight that several modules share is stored once
        stored[key] = name
        if name in frozen.weights:
            integers = frozen.integers(name, value).cpu().contiguous()
            shapes[name] = list(value.shape)
            if frozen.bits == 4:
                data = np.frombuffer(packed(integers.numpy().reshape(-1), 4), dtype=np.uint8).copy()
                integers = torch.from_numpy(data)
            tensors[name] = integers
        else:
            tensors[name] = frozen.biases.get(name, value).detach().cpu().contiguous().clone()
    scales = {name: one.clone() for name, one in frozen.tensors().items() if not name.endswith(".shipped")}
    if both := sorted(tensors.keys() & scales.keys()):
        raise Refusal(
            f"the model has a tensor {both[0]} of its own, which is what the file calls a scale of the quantization: "
            "rename it in the model, or give format=onnx or format=torch"
        )
    tensors |= scales
    described = {
        "name": frozen.name,
        "bits": frozen.bits,
        "weights": shapes,
        "activations": list(frozen.activations),
    }
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "model.json").write_text(json.dumps(origin | {"quantized": described}, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(quantized_loader.__file__, folder / "load_quantized.py")


@torch.no_grad()
def load_saved(model: nn.Module, folder: Path) -> nn.Module:
    """What `load_quantized.py` makes of the folder, from a copy of the plain `model` that has none of its numbers.

    A tensor that the folder lacks would leave not-a-number in the outputs (of integers, zeros).
    """
    empty = copy.deepcopy(model)
    for value in empty.state_dict().values():
        value.fill_(math.nan if value.is_floating_point() else 0)
    return quantized_loader.load_quantized(empty, folder)
