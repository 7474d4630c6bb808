"""Exports a model as a `torch.export` program, which can be loaded without the model's class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pdp.export.inputs import dynamic_shapes


def save_program(model: nn.Module, example_inputs: Sequence[Tensor], path: Path) -> None:
    """Writes a `torch.export` program for any batch size and, for text, any length; loading it needs no class."""
    # Two samples, because torch.export would treat a batch size of one as a constant.
    batch = tuple(one[:1].expand(2, *one.shape[1:]).contiguous() for one in example_inputs)
    program = torch.export.export(model.eval(), batch, dynamic_shapes=dynamic_shapes(model, len(batch)))
    torch.export.save(program, path)
