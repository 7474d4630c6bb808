"""A transformer and its tokenizer in a folder, as transformers writes and opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdp.errors import Stopped


def save_transformer(model: Any, tokenizer: Any, inputs: Tensor, folder: Path) -> list[tuple[str, str]]:
    """Writes a transformer and its tokenizer as transformers does, and compares what opens with what was there."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        off = float((again(inputs).logits - model(inputs).logits).abs().max())
    if off:
        raise Stopped(f"the model in {folder} differs from the run's by {off:.2g}: not to be used")
    return [("opens with", f"transformers.{type(model).__name__}.from_pretrained('{folder}')"), ("difference", "0")]
