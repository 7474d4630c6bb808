"""A model as a `torch.export` program, which opens without the class that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pdp.export.inputs import dynamic_shapes


def save_program(model: nn.Module, example_inputs: Sequence[Tensor], path: Path) -> None:
    """Writes a `torch.export` program of any batch size, and of any length of text; it needs no class of anybody's."""
    # Two samples: a batch of one would be taken for a constant.
    batch = tuple(one[:1].expand(2, *one.shape[1:]).contiguous() for one in example_inputs)
    program = torch.export.export(model.eval(), batch, dynamic_shapes=dynamic_shapes(model, len(batch)))
    torch.export.save(program, path)
