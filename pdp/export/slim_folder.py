"""Stores a slim model: its sizes, its weights, and the code that loads them into the dense model's class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import Tensor, nn

from pdp.export import slim_loader
from pdp.export.slim import Slimmed, slim
from pdp.export.transformer_folder import write_transformer


def save_slim(model: nn.Module, example_input: Tensor, folder: Path, origin: dict[str, Any]) -> nn.Module:
    """Writes and returns the slim model of a channel-pruned one; raises `Refusal` before anything is written."""
    slimmed = slim(model, example_input)
    write_slim(slimmed, folder, origin)
    return slimmed.model.eval()


def write_slim(slimmed: Slimmed, folder: Path, origin: dict[str, Any], tokenizer: Any = None) -> None:
    """Writes slim.json, model.safetensors, and load_slim.py, which loads them into the dense model's own class.

    The loaded model can be trained. `origin` is stored in slim.json and describes the dense model. If a Hugging Face
    model's configuration says the slim sizes, it is written too, with its `tokenizer`, so that `from_pretrained` opens
    the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    removed = {name: {"removed": gone, "of": units} for name, (gone, units) in slimmed.removed.items()}
    described = {"model": origin, "modules": slimmed.modules, "channels": removed}
    (folder / "slim.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    if slimmed.opens:
        write_transformer(slimmed.model, tokenizer, folder, save_original_format=False)
    else:
        save_model(slimmed.model, str(folder / "model.safetensors"))
    shutil.copyfile(slim_loader.__file__, folder / "load_slim.py")
