"""A quantized model on the disk: integers and scales, and the code that loads them into the plain model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

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
    tensors |= {name: one.clone() for name, one in frozen.tensors().items() if not name.endswith(".shipped")}
    described = {
        "name": frozen.name,
        "bits": frozen.bits,
        "weights": shapes,
        "activations": list(frozen.activations),
    }
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "model.json").write_text(json.dumps(origin | {"quantized": described}, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(quantized_loader.__file__, folder / "load_quantized.py")
