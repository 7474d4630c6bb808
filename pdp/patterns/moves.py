"""Operations that move elements: the labels are moved in the same way as the tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdp.patterns import labels as lab
from pdp.patterns.counts import cut_at, split_at
from pdp.patterns.walk import Walk

SAME = {"clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "lift_fresh_copy", "tril", "triu"}
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_TURNS = {"permute", "transpose", "t", "unsqueeze", "squeeze", "expand"}
_PARTS = {"slice", "select", "split", "split_with_sizes", "unbind"}
_SHUFFLES = {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"}
_ORDERS = {"flip", "repeat"}  # these are exact along the channels as well
_PICKS = {"roll", "unfold", "index", "index_select", "gather", "diagonal", "repeat_interleave", "narrow_copy"}
MOVES = _VIEWS | _TURNS | _PARTS | _SHUFFLES | _ORDERS | _PICKS


def same(walk: Walk, values: Tensor, out: Tensor) -> None:
    """The result holds the elements of the input unchanged."""
    mark = walk.mark(values)
    if mark is not None:
        walk.put(out, mark.labels, mark.source)


def copy_into(walk: Walk, target: Tensor, values: Any) -> None:
    """A tensor that is overwritten gets the labels of the new values."""
    labels = walk.labels(values)
    if labels is not None:
        labels = labels.reshape((1,) * (target.dim() - labels.dim()) + tuple(labels.shape))
    walk.put(target, labels)


def move(walk: Walk, base: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Labels the result, or each of several results."""
    values = args[0]
    for other in args[1:]:
        for one in other if isinstance(other, (list, tuple)) else [other]:
            if isinstance(one, Tensor):
                walk.pin(walk.data_labels(one), f"its channels say what is taken in {walk.where}")
    if not isinstance(values, Tensor):
        return
    if _turns_parameter(walk, base, func, args, kwargs, out):
        return
    labels = walk.labels(values)
    if labels is None:
        return
    results = out if isinstance(out, (list, tuple)) else [out]
    data = lab.of_data(labels)
    along = lab.varying(labels)
    if data and not _allowed(walk, base, args, labels, along, results):
        return
    moved = _moved(base, func, args, kwargs, labels, values, results)
    for one, found in zip(results, moved, strict=True):
        settled = lab.compact(found)
        if settled is not None and data:
            settled = one_dimension(walk, settled, _kept(base, settled))
        walk.put(one, settled)


def _turns_parameter(walk: Walk, base: str, func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Whether the operation only permutes a parameter's dimensions, so that a product can still use it as a weight."""
    mark = walk.mark(args[0])
    if mark is None or mark.source is None or base not in _TURNS | {"view", "reshape"}:
        return False
    identity, axes = mark.source
    # Applies the operation to a tensor whose sizes encode the axes.
    if base in ("permute", "transpose", "t"):
        names = torch.empty([index + 2 for index in range(len(axes))], device="meta")
        turned = tuple(axes[size - 2] for size in func(names, *args[1:], **kwargs).shape)
    elif base == "unsqueeze":
        dim = args[1] % out.dim()
        turned = (*axes[:dim], None, *axes[dim:])
    elif out.shape == args[0].shape:
        turned = axes
    else:
        return False
    walk.put(out, None, (identity, turned))
    return True


def _allowed(walk: Walk, base: str, args: Any, labels: Tensor, along: list[int], results: Any) -> bool:
    """Whether the channels may be moved in this way; ties those that must then go together, or pins them."""
    dims = labels.dim()
    if base in _PICKS:
        picked = _picked(base, args, dims)
        if picked is None or picked.intersection(along):
            walk.pin(labels, f"{base} between its channels ({walk.where}) names them by number")
            return False
        return True
    if base not in _PARTS or base == "select" and args[1] % dims not in along:
        return True
    split = base in ("split", "split_with_sizes")
    dim = (args[2] if split and len(args) > 2 else args[1] if base in ("slice", "select") else None) or 0
    if base == "unbind":
        dim = args[1] if len(args) > 1 else 0
    dim %= dims
    if dim not in along:
        return True
    if base in ("select", "unbind"):
        walk.pin(labels, f"{base} of one of its channels ({walk.where}) names them by number")
        return False
    size = labels.shape[dim]
    leading = lab.atoms_of(labels.movedim(dim, 0).reshape(size, -1)[:, 0])
    if base == "split_with_sizes":
        if split_at(walk, leading, args[1]):
            return True
        walk.pin(labels, f"{base} of its channels ({walk.where}) names their numbers")
        return False
    if base == "slice":
        start, end = (args[2] if len(args) > 2 else None) or 0, args[3] if len(args) > 3 else None
        start = max(start + size, 0) if start < 0 else min(start, size)
        end = size if end is None else max(end + size, 0) if end < 0 else min(end, size)
        length = end - start
        stepped = len(args) > 4 and args[4] != 1
        named = not stepped and cut_at(walk, leading, [one for one in (start, end) if 0 < one < size])
        if named and (size % length or start % length):
            return True
        if stepped or length and (size % length or start % length):
            walk.pin(labels, f"a part of its channels is taken by their numbers ({walk.where})")
            return False
    else:
        start, length = 0, results[0].shape[dim]
        cut_at(walk, leading, [one for one in (length, size) if split and length < size])
        if any(one.shape[dim] != length for one in results):
            length = 0  # unequal parts: whether their sizes are fixed in the code shows when the smaller model runs
    if 0 < length < size and size % length == 0 and start % length == 0:
        blocks = leading.reshape(-1, length)
        for one in blocks[1:]:
            both = (one >= 0) & (blocks[0] >= 0)
            walk.atoms.tie(blocks[0][both], one[both])
            lost = np.concatenate([blocks[0][~both], one[~both]])
            walk.atoms.pin(lost[lost >= 0], f"its channels and other values are cut into parts in {walk.where}")
    return True


def _picked(base: str, args: Any, dims: int) -> set[int] | None:
    """The dimensions whose elements the operation selects by index."""
    if base == "index":
        return {dim for dim, one in enumerate(args[1]) if one is not None}
    if base == "roll":
        return {dim % dims for dim in args[2]} if len(args) > 2 and args[2] else None
    if base == "diagonal":
        return {one % dims for one in (*args[2:4], *(0, 1)[len(args[2:4]) :])}
    if base == "repeat_interleave":
        return None
    return {args[1] % dims}


def _moved(base: str, func: Any, args: Any, kwargs: Any, labels: Tensor, values: Tensor, results: Any) -> list[Tensor]:
    if base in _VIEWS:
        return [_viewed(labels, values.shape, results[0].shape)]
    others = [_on_host(one) for one in args[1:]]
    if base in _SHUFFLES and labels.dim() != values.dim():
        raise ValueError("shapes differ")
    moved = func(labels.expand(values.shape), *others, **kwargs)
    return list(moved) if isinstance(moved, (list, tuple)) else [moved]


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    return [_on_host(one) for one in value] if isinstance(value, (list, tuple)) else value


def _viewed(labels: Tensor, before: Any, after: Any) -> Tensor:
    """The labels of a view. If they differ along one dimension that stays as it is, they are not expanded."""
    along = lab.varying(labels)
    if not along:
        return labels.reshape((1,) * len(after))
    if len(along) == 1:
        size, behind = before[along[0]], int(np.prod(before[along[0] + 1 :]))
        for dim in range(len(after)):
            if after[dim] == size and int(np.prod(after[dim + 1 :])) == behind:
                return lab.upright(labels.reshape(-1), dim, len(after))
    return labels.expand(before).reshape(after)


def _kept(base: str, labels: Tensor) -> int:
    """If channels lie along several dimensions after a move: the one along which they could be removed."""
    if base in ("pixel_shuffle", "pixel_unshuffle"):
        return labels.dim() - 3
    return lab.varying(labels)[-1] if lab.varying(labels) else 0


def one_dimension(walk: Walk, labels: Tensor, keep: int) -> Tensor | None:
    """Reduces the labels to ones that differ only along dimension `keep`, by tying all that share an index there.

    Code that reshapes channels into rows and columns needs the same number of channels in each row.
    """
    if all(dim == keep for dim in lab.varying(labels)):
        return labels
    rows = labels.movedim(keep, 0).reshape(labels.shape[keep], -1).numpy()
    some = rows >= 0
    mixed = some.any(1) & ~some.all(1)
    walk.atoms.pin(rows[mixed][some[mixed]] // lab._WIDTH, f"its channels lie beside other values in {walk.where}")
    data = lab.is_data(rows)
    best = np.where(data.any(1), data.argmax(1), some.argmax(1))
    first = rows[np.arange(len(rows)), best]
    whole = some.all(1)
    walk.atoms.tie(np.repeat(first[whole], rows.shape[1]) // lab._WIDTH, rows[whole].reshape(-1) // lab._WIDTH)
    states = np.where(some, rows & lab._STATES, lab.KEPT)
    free = (states == lab.FREE) & data.any(1, keepdims=True)
    zero = ((states == lab.ZERO) | free).all(1)
    walk.mask((rows // lab._WIDTH)[free & zero[:, None]])
    state = np.where(zero, lab.ZERO, np.where((states == lab.FREE).all(1), lab.FREE, lab.KEPT))
    settled = lab.with_state(torch.from_numpy(np.where(whole, first, lab.NONE)), state)
    return lab.compact(lab.upright(settled, keep, labels.dim()))


def concatenate(walk: Walk, base: str, args: Any, kwargs: Any, out: Tensor) -> None:
    """The rule for cat and stack."""
    tensors = args[0]
    held = [walk.labels(one) for one in tensors]
    if all(one is None for one in held):
        return
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    dim %= out.dim()
    parts = []
    for labels, tensor in zip(held, tensors, strict=True):
        if tensor.dim() == 1 and tensor.numel() == 0 and out.dim() > 1:
            continue
        shape = tensor.shape
        labels = torch.full((1,) * tensor.dim(), lab.NONE) if labels is None else labels
        if base == "stack":
            labels, shape = labels.unsqueeze(dim), (*shape[:dim], 1, *shape[dim:])
        parts.append((labels, shape))
    wide = [any(labels.shape[one] > 1 for labels, _ in parts) or one == dim for one in range(out.dim())]
    spread = [labels.expand([size if wide[one] else 1 for one, size in enumerate(shape)]) for labels, shape in parts]
    joint = lab.compact(torch.cat(spread, dim))
    if joint is not None and lab.of_data(joint):
        others = [one for one in lab.varying(joint) if one != dim]
        joint = one_dimension(walk, joint, others[-1] if others else dim)
    walk.put(out, joint)
