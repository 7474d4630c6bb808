"""PDP's soft mask and its gradient (the paper's equations of the mask); autograd treats the cut as a constant."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pdp.masks.transforms import gradients_with_a_graph, takes_plain, wants_a_graph

# Beyond this |z| the mask is 0 or 1 to within 1e-26. A bounded z cannot overflow. Without the bound, a tiny mask or its
# product with a weight or a gradient would be a subnormal number, which makes a CPU's convolutions four times slower.
SATURATED = 60.0
NOTHING = 1e-26
FARTHEST = -1e20  # lower bound of -t^2 / tau where the gradient is computed
_PIECE = 1 << 18  # numbers processed at a time on the CPU, so that repeated passes over them stay in its cache


def soft_mask(weight: Tensor, cut: Tensor | float, temperature: Tensor | float) -> Tensor:
    """m(w) = sigmoid((w^2 - t^2) / tau) in [0, 1], float32 (float64 for float64), differentiable in `weight`.

    `cut` is t and `temperature` is tau; both broadcast against `weight`. t = -inf keeps every weight, t = +inf none.
    Derivatives of any order and `torch.func` transforms give those of the formula, with t held constant.
    """
    if takes_plain():
        return plain_mask(weight, as_cut(cut, weight), temperature)
    return _SoftMask.apply(weight, as_cut(cut, weight), temperature)


def soft_prune(weight: Tensor, cut: Tensor | float, temperature: Tensor | float) -> Tensor:
    """The effective weight m(w) * w, in the dtype of `weight`; its derivative is m + (2 w^2 / tau) m (1 - m).

    Saves only the weight and the cut for backward, which computes the mask again.
    """
    if takes_plain():
        return plain_prune(weight, as_cut(cut, weight), temperature)
    return _SoftPrune.apply(weight, as_cut(cut, weight), temperature)


def plain_mask(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """`soft_mask` in plain operations, which support derivatives of any order, `torch.func` and forward mode."""
    precise = exact(weight)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(precise.dtype)
    offset = offset_of(cut, temperature, precise.dtype)
    mask = (offset + precise * precise / temperature).clamp(-SATURATED, SATURATED).sigmoid()
    return torch.where(mask > NOTHING, mask, torch.zeros((), dtype=mask.dtype, device=mask.device))


def plain_prune(weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
    """`soft_prune` in plain operations, which support derivatives of any order, `torch.func` and forward mode."""
    return (plain_mask(weight, cut, temperature) * exact(weight)).to(weight.dtype)


def as_cut(cut: Tensor | float, weight: Tensor) -> Tensor:
    """The cut as a tensor; a plain number becomes one on the weight's device."""
    return cut if isinstance(cut, Tensor) else torch.tensor(cut, device=weight.device)


def exact(values: Tensor) -> Tensor:
    """The values in the type that masks are computed in: float64 unchanged, everything else as float32."""
    return values if values.dtype == torch.float64 else values.float()


def offset_of(cut: Tensor, temperature: Tensor | float, dtype: torch.dtype) -> Tensor:
    """-t^2 / tau, clamped to finite numbers; computed as -t |t| / tau, so that a cut of -inf keeps every weight."""
    largest = torch.finfo(dtype).max / 4
    cut = cut.to(dtype)
    return (cut * cut.abs() / -temperature).clamp(-largest, largest)


def _scaled_square(offset: Tensor, weight: Tensor, temperature: Tensor | float, out: Tensor) -> Tensor:
    """z = (w^2 - t^2) / tau, written into `out`; `offset` is -t^2 / tau."""
    if isinstance(temperature, Tensor):
        return torch.addcmul(offset, weight / temperature.to(weight.dtype), weight, out=out)
    return torch.addcmul(offset, weight, weight, value=1 / temperature, out=out)


def lies_dense(values: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps, in contiguous or channels_last order."""
    return values.is_contiguous() or (values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last))


def lies_readable(values: Tensor) -> bool:
    """Whether a kernel may read the tensor's memory: it has some, and no sign is still to be applied to it."""
    return not (values._is_zerotensor() or values.is_neg())


def memory_order(weight: Tensor) -> torch.memory_format:
    """Which of the two dense memory formats a tensor has."""
    return torch.contiguous_format if weight.is_contiguous() else torch.channels_last


def _pieces(offset: Tensor, temperature: Tensor | float, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Splits the tensors into pieces in memory order where one cut and temperature hold for all of them; else yields
    them whole.
    """
    first = tensors[0]
    single = offset.numel() == 1 and not (isinstance(temperature, Tensor) and temperature.numel() > 1)
    if not single or first.device.type != "cpu" or first.numel() <= _PIECE:
        return [tensors]
    if not lies_dense(first) or any(one.stride() != first.stride() for one in tensors):
        return [tensors]
    units = first.numel()
    # All pieces have about the same size: a short last piece would be too small to divide among several threads.
    size = -(-units // -(-units // _PIECE) // 16) * 16
    return zip(*(one.as_strided((units,), (1,)).split(size) for one in tensors), strict=True)


class _SoftPrune(torch.autograd.Function):
    # This function has no setup_context: with one, apply() would look up the signature of forward() at every call,
    # which takes 30 microseconds per layer.
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
        ctx.temperature = temperature  # type: ignore[attr-defined]
        precise = exact(weight)
        offset = offset_of(cut, temperature, precise.dtype)
        effective = torch.empty_like(precise)
        for w, out in _pieces(offset, temperature, precise, effective):
            mask = _scaled_square(offset, w, temperature, out).sigmoid_()
            torch.threshold_(mask, NOTHING, 0.0).mul_(w)
        ctx.save_for_backward(weight, cut)
        return effective.to(weight.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, cut = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature = ctx.temperature  # type: ignore[attr-defined]
        if wants_a_graph():
            plain = partial(plain_prune, cut=cut, temperature=temperature)
            return *gradients_with_a_graph(plain, [weight], [gradient]), None, None  # type: ignore[return-value]
        precise = exact(weight)
        offset = offset_of(cut, temperature, precise.dtype)
        slope = torch.empty_like(precise)
        tensors = (precise, gradient.to(precise.dtype), slope)
        one_number = offset.numel() == 1 and not (isinstance(temperature, Tensor) and temperature.numel() > 1)
        # With an infinite cut the slope is zero; without this bound, a clamped z times infinity would not give zero.
        bounded = offset.clamp(min=FARTHEST) if one_number else offset
        for w, upstream, out in _pieces(offset, temperature, *tensors):
            z = _scaled_square(offset, w, temperature, out).clamp_(-SATURATED, SATURATED)
            mask = z.sigmoid()
            if not one_number:  # then there is a single piece, and z no longer needs the offset
                bounded.clamp_(min=FARTHEST)
            # 2 w^2 / tau = 2 z + 2 t^2 / tau
            twice_square = z.mul_(2).sub_(bounded, alpha=2)
            torch.ops.aten.sigmoid_backward.grad_input(twice_square, mask, grad_input=out)
            out.add_(mask).mul_(upstream)
        return slope.to(weight.dtype), None, None


class _SoftMask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, cut: Tensor, temperature: Tensor | float) -> Tensor:
        ctx.temperature = temperature  # type: ignore[attr-defined]
        ctx.save_for_backward(weight, cut)
        precise = exact(weight)
        offset = offset_of(cut, temperature, precise.dtype)
        mask = _scaled_square(offset, precise, temperature, torch.empty_like(precise)).sigmoid_()
        return torch.threshold_(mask, NOTHING, 0.0)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, cut = ctx.saved_tensors  # type: ignore[attr-defined]
        temperature = ctx.temperature  # type: ignore[attr-defined]
        if wants_a_graph():
            plain = partial(plain_mask, cut=cut, temperature=temperature)
            return *gradients_with_a_graph(plain, [weight], [gradient]), None, None  # type: ignore[return-value]
        precise = exact(weight)
        offset = offset_of(cut, temperature, precise.dtype)
        mask = _scaled_square(offset, precise, temperature, torch.empty_like(precise)).sigmoid_()
        slope = torch.ops.aten.sigmoid_backward(gradient, mask).mul_(precise)
        slope = slope.mul_(2 / temperature)
        return slope.to(weight.dtype), None, None
