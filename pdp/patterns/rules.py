"""The rule for each operation, by its name in PyTorch's dispatcher: what it does to the channels of its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pdp.patterns import labels as lab
from pdp.patterns.moves import MOVES, SAME, concatenate, copy_into, move, same
from pdp.patterns.pointwise import is_pointwise, pointwise
from pdp.patterns.products import PRODUCTS
from pdp.patterns.walk import Walk, lay_of, title

HEADS = "its channels are parts of heads, in an attention of a kind that is not known"
_ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "multi_head_attention")
_ZERO_KEPT = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "linalg_vector_norm", "prod"}
_REDUCTIONS = _ZERO_KEPT | {"logsumexp", "argmax", "argmin", "any", "all", "var_mean", "std_mean", "count_nonzero"}
_OVER_ONE = {"_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "topk"}
_ACROSS = {  # operations over the last so many dimensions, each channel by itself
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg", "_adaptive_avg", "adaptive_avg") for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": n for kind in ("adaptive_max", "fractional_max") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": n for n in (1, 2, 3)},
    **{f"{kind}_pad{n}d": n for kind in ("reflection", "replication") for n in (1, 2, 3)},
    **{f"upsample_{kind}": 2 for kind in ("nearest2d", "bilinear2d", "bicubic2d")},
    **{f"_upsample_{kind}_aa": 2 for kind in ("bilinear2d", "bicubic2d")},
    **{f"_upsample_nearest_exact{n}d": n for n in (1, 2, 3)},
    **{"upsample_linear1d": 1, "upsample_nearest1d": 1, "upsample_nearest3d": 3, "upsample_trilinear3d": 3},
    **{"grid_sampler_2d": 2, "grid_sampler_3d": 3, "quantized_max_pool2d": 2},
}
_MADE_LIKE = {"zeros_like": 0, "empty_like": None, "ones_like": 1, "full_like": None, "rand_like": 1, "randn_like": 1}
_BATCH_NORMS: tuple[str, ...] = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "batch_norm",
)
_BATCH_NORMS += ("cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm")


def follow(walk: Walk, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Labels `out`, and notes in `walk` which atoms the operation ties together or pins."""
    name = title(func)
    base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    if base == "copy":
        copy_into(walk, args[0], args[1])
    elif base in PRODUCTS:
        PRODUCTS[base](walk, args, kwargs, out)
    elif base in SAME or base == "native_dropout":
        same(walk, args[0], _first(out))
    elif base == "as_strided" and lay_of(_first(out)) == walk.lay:
        same(walk, args[0], _first(out))  # as a pooling to 1 x 1 gives its result the strides of channels last
    elif base in MOVES:
        move(walk, base, func, args, kwargs, out)
    elif base in ("cat", "stack"):
        concatenate(walk, base, args, kwargs, out)
    elif is_pointwise(func, base):
        pointwise(walk, func, args, kwargs, out)
    elif base in _BATCH_NORMS:
        _batch_norm(walk, args, _first(out))
    elif base == "native_group_norm":
        _group_norm(walk, args, _first(out))
    elif base in ("native_layer_norm", "_fused_rms_norm"):
        _layer_norm(walk, base, args, _first(out))
    elif base in _REDUCTIONS:
        _reduce(walk, base, func, args, kwargs, out)
    elif base in _OVER_ONE:
        _over_one(walk, base, func, args, kwargs, out)
    elif base == "glu":
        _glu(walk, args, out)
    elif base in _ACROSS:
        _across(walk, base, _ACROSS[base], args, _first(out))
    elif base == "constant_pad_nd":
        _pad(walk, args, out)
    elif base in _MADE_LIKE:
        _made_like(walk, base, args, out)
    elif base in ("bernoulli", "uniform", "normal", "exponential") and name != base:
        _filled(walk, base, args[:1])
    elif base in ("fill", "zero"):
        _filled(walk, base, args)
    elif any(one in base for one in _ATTENTION):
        walk.pin_all((args, kwargs), HEADS)
    elif base == "embedding":
        walk.pin_all(args[:1], f"it is the table of {walk.where}")
    else:
        walk.pin_all((args, kwargs), f"its channels pass through {base} ({walk.where}), which is not followed")


def _first(out: Any) -> Tensor:
    return next(one for one in tree_leaves(out) if isinstance(one, Tensor))


def _batch_norm(walk: Walk, args: Any, out: Tensor) -> None:
    _per_channel(walk, args[0], list(args[1:5]), out)


def _group_norm(walk: Walk, args: Any, out: Tensor) -> None:
    values, weight, bias, _, channels, _, groups = args[:7]
    if groups == channels:
        _per_channel(walk, values, [weight, bias], out)
    else:
        reason = f"its channels pass through a norm over several of them ({walk.where}), whose result they change"
        walk.pin(walk.data_labels(values), f"{reason} even as zeros")


def _per_channel(walk: Walk, values: Tensor, own: list[Any], out: Tensor) -> None:
    """A norm of each channel by itself, along dimension 1; the first two of its `own` tensors are weight and bias."""
    labels = walk.labels(values) if walk.mark(values) is not None else None
    if labels is None or not lab.of_data(labels):
        walk.pin(labels, f"a parameter is normalised in {walk.where}")
        return
    vector = lab.along(labels, 1, values.shape[1])
    if vector is None:
        walk.pin(labels, f"its channels pass through a norm over other dimensions ({walk.where})")
        return
    atoms = lab.atoms_of(vector)
    for one in own:
        if not isinstance(one, Tensor):
            continue
        other = walk.labels(one)
        if other is None:
            if one.numel() > 1:
                walk.pin(labels, f"its channels meet other values in {walk.where}")
            continue
        theirs = lab.atoms_of(other.expand(one.shape))
        both = (atoms >= 0) & (theirs >= 0)
        walk.atoms.tie(atoms[both], theirs[both])
        walk.atoms.pin(theirs[(theirs >= 0) & (atoms < 0)], f"{walk.where} norms other values as well")
        walk.atoms.pin(atoms[(theirs < 0) & (atoms >= 0)], f"its channels meet other values in {walk.where}")
    state = lab.KEPT
    reached = [walk.labels(one) for one in own[:2] if isinstance(one, Tensor)]
    if len(reached) == 2 and all(one is not None and bool((_state(one) == lab.FREE).all()) for one in reached):
        for one in reached:
            walk.mask(lab.atoms_of(one)[atoms >= 0])  # type: ignore[arg-type]
        state = lab.ZERO
    walk.put(out, lab.upright(lab.with_state(vector, state), 1, out.dim()))


def _state(labels: Tensor) -> Any:
    return lab.states_of(labels)


def _layer_norm(walk: Walk, base: str, args: Any, out: Tensor) -> None:
    labels = walk.data_labels(args[0])
    if labels is None:
        return
    normalized = len(args[1])
    if any(dim >= labels.dim() - normalized for dim in lab.varying(labels)):
        kind = "LayerNorm" if base == "native_layer_norm" else "RMSNorm"
        reason = f"its channels pass through {kind} ({walk.where}), whose result they change even as zeros"
        walk.pin(labels, reason)
        return
    walk.put(out, lab.with_state(labels, lab.KEPT))


def _reduce(walk: Walk, base: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    labels = walk.labels(args[0]) if walk.mark(args[0]) is not None else None
    if labels is None:
        return
    given = {one.name: value for one, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    dims = given.get("dim", given.get("dims"))
    dims = range(labels.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    over = {dim % labels.dim() for dim in dims}
    along = lab.varying(labels)
    if over.intersection(along):
        states = lab.states_of(labels[labels >= 0])
        exact = base in ("sum", "linalg_vector_norm", "norm") and bool((states == lab.ZERO).all())
        if not exact or set(along) - over:
            reason = f"{base} over its channels ({walk.where}) is another without them"
            walk.pin(labels, reason)
        return
    rest = labels
    if not given.get("keepdim", False):
        for dim in sorted(over, reverse=True):
            rest = rest.squeeze(dim)
    if base not in _ZERO_KEPT:
        rest = lab.with_state(rest, lab.KEPT)
    for one in tree_leaves(out):
        if isinstance(one, Tensor) and one.dim() == rest.dim():
            walk.put(one, rest if one.is_floating_point() else None)


def _over_one(walk: Walk, base: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    labels = walk.data_labels(args[0])
    if labels is None:
        return
    given = {one.name: value for one, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    dim = given.get("dim", -1) % labels.dim()
    if dim in lab.varying(labels):
        walk.pin(labels, f"{base.strip('_')} over its channels ({walk.where}) is another without them")
        return
    state = lab.KEPT if "softmax" in base else None
    walk.put(_first(out), labels if state is None else lab.with_state(labels, state))


def _glu(walk: Walk, args: Any, out: Tensor) -> None:
    """The rule for GLU: the first half times the sigmoid of the second half."""
    labels = walk.data_labels(args[0])
    if labels is None:
        return
    dim = (args[1] if len(args) > 1 else -1) % labels.dim()
    if lab.varying(labels) not in ([], [dim]):
        walk.put(out, labels)
        return
    vector = labels.reshape(-1).expand(args[0].shape[dim])
    half = len(vector) // 2
    atoms = lab.atoms_of(vector)
    both = (atoms[:half] >= 0) & (atoms[half:] >= 0)
    walk.atoms.tie(atoms[:half][both], atoms[half:][both])
    for side in (atoms[:half], atoms[half:]):
        lost = side[~both]
        walk.atoms.pin(lost[lost >= 0], f"its channels meet other values in {walk.where}")
    walk.put(out, lab.compact(lab.upright(vector[:half], dim, labels.dim())))


def _across(walk: Walk, base: str, dims: int, args: Any, out: Tensor) -> None:
    labels = walk.data_labels(args[0])
    walk.pin_all(args[1:], f"it is read by {base} ({walk.where})")
    if labels is None:
        return
    if any(dim >= labels.dim() - dims for dim in lab.varying(labels)):
        walk.pin(labels, f"{base} ({walk.where}) is over its channels")
        return
    walk.put(out, labels)


def _pad(walk: Walk, args: Any, out: Tensor) -> None:
    labels = walk.data_labels(args[0])
    if labels is None:
        return
    value = args[2] if len(args) > 2 else 0
    padded = [labels.dim() - 1 - index // 2 for index, size in enumerate(args[1]) if size]
    if any(dim in padded for dim in lab.varying(labels)):
        if len(lab.varying(labels)) > 1:
            walk.pin(labels, f"padding between its channels ({walk.where}) is not followed")
            return
        dim = lab.varying(labels)[0]
        amounts = args[1][2 * (labels.dim() - 1 - dim) :][:2]
        vector = labels.reshape(-1)
        ends = [torch.full((max(size, 0),), lab.NONE) for size in amounts]
        vector = torch.cat([ends[0], vector[max(-amounts[0], 0) : len(vector) - max(-amounts[1], 0)], ends[1]])
        labels = lab.upright(vector, dim, labels.dim())
    walk.put(out, labels if value == 0 else lab.with_state(labels, lab.KEPT))


def _made_like(walk: Walk, base: str, args: Any, out: Tensor) -> None:
    labels = walk.data_labels(args[0])
    if labels is not None:
        walk.put(out, lab.with_state(labels, lab.ZERO if base == "zeros_like" else lab.KEPT))


def _filled(walk: Walk, base: str, args: Any) -> None:
    labels = walk.data_labels(args[0])
    if labels is not None:
        zero = base == "zero" or (len(args) > 1 and not isinstance(args[1], Tensor) and args[1] == 0)
        walk.put(args[0], lab.with_state(labels, lab.ZERO if zero else lab.KEPT))
