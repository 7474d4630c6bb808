"""Exports 2:4 linear weights as torch's semi-structured sparse tensors, for which NVIDIA GPUs have fast products."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.patterns.nm import obeys
from pdp.survey import find_layers


def check_nm(model: nn.Module, n: int, m: int, names: set[str]) -> list[str]:
    """The layers among `names` that have a group of M with more than N nonzero weights."""
    return [one.name for one in find_layers(model) if one.name in names and not obeys(one.weight.detach(), one, n, m)]


def refuse_without_semi_structured(device: str = "cuda") -> None:
    """Raises `Refusal` if there is no GPU that supports torch's semi-structured format."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise Refusal(
            "format=nm stores 2:4 weights as NVIDIA GPUs of compute capability 8.0 and up compute with them, and none "
            "is at hand: export there, or give format=onnx or format=safetensors"
        )


def save_semi_structured(model: nn.Module, names: set[str], folder: Path) -> list[tuple[str, str]]:
    """Writes 2:4 linear weights in torch's semi-structured format (float16), checked against dense products.

    Needs a CUDA device that supports the format.
    """
    from torch.sparse import to_sparse_semi_structured

    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    worst, kind = 0.0, ""
    for name, value in model.state_dict().items():
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name)
        half = value.cuda().half() if value.is_floating_point() else value
        rows, columns = value.shape if value.dim() == 2 else (0, 0)
        if (
            isinstance(module, nn.Linear)
            and key == "weight"
            and module_name in names
            and not (rows % 32 or columns % 64)
        ):
            sparse = to_sparse_semi_structured(half)
            inputs = torch.randn(64, columns, device="cuda", dtype=torch.float16)
            dense = nn.functional.linear(inputs, half)
            off = float((nn.functional.linear(inputs, sparse) - dense).abs().max() / dense.abs().max())
            worst = max(worst, off)
            for part in ("packed", "meta"):
                stored = getattr(sparse, part)
                if stored is not None:
                    tensors[f"{name}.{part}"] = stored.cpu()
            shapes[name], kind = [rows, columns], type(sparse).__name__
        else:
            tensors[name] = half.cpu()
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(folder / "model-2-4.safetensors"))
    # What is needed to rebuild a tensor from its parts: its class and shape, and the torch version that made the parts.
    described = {"class": kind, "torch": torch.__version__, "shapes": shapes}
    (folder / "model-2-4.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return [
        ("linear layers packed", f"{len(shapes)}; convolutions stay dense with their zeros"),
        ("difference of the products", f"{worst:.2g} of the largest"),
    ]
