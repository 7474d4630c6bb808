"""Parameters that lie in parts on several processes (FSDP2): the whole of one, and writing a whole one to its parts.

What makes a whole is collective: every process of the group calls it, in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def is_sharded(tensor: Any) -> bool:
    """Whether this process holds only a part of the tensor."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Any:
    """The tensor itself, or all of a sharded one, gathered from all processes and without a part in the graph."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: Any) -> Any:
    """The tensor itself, or what this process holds of a sharded one; shares its storage."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def part_of(value: Tensor, tensor: Any) -> Tensor:
    """Of a whole `value`, what belongs to this process's part of `tensor`; all of it where that is not sharded."""
    if not is_sharded(tensor) or is_sharded(value) or value.dim() < tensor.dim():
        return value
    (placement,), mesh = tensor.placements, tensor.device_mesh
    chunks = value.chunk(mesh.size(), placement.dim)
    place = mesh.get_local_rank()
    return chunks[place] if place < len(chunks) else value.narrow(placement.dim, 0, 0)


@torch.no_grad()
def write(tensor: Any, value: Tensor) -> None:
    """Copies a whole `value` into the tensor, or into this process's part of it."""
    own_part(tensor).copy_(part_of(value, tensor))


def resharded(value: Tensor, like: Any) -> Any:
    """A whole `value` in parts as `like` has them, made without a word to other processes."""
    if not is_sharded(like):
        return value
    part = part_of(value, like).to(like.device).contiguous()
    kind: Any = type(like.detach())
    return kind.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def any_process(found: bool, like: Any) -> bool:
    """Whether it is so on any process that holds a part of `like`."""
    if not is_sharded(like):
        return found
    flag = torch.tensor(float(found), device=like.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)
