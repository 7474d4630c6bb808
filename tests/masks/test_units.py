"""The mask of whole units on a layer's tensors, against autograd of the plain formula in float64."""

import pytest
import torch

from pdp.masks.units import mask_units, steepness

SCALE, TAU, CUT = 0.2, 0.7, 0.4
UNITS = 5
ORDER = torch.tensor([3, 0, 0, 4, 1, 2, 2, 1])  # of the slices of what is coupled out of order


def tensors_of_a_layer(dtype=torch.float32):
    """Two filters in order, one out of order, then what does not make the mask: two vectors, one out of order."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(UNITS, 3, 2, 2), (UNITS, 4), (8, 2), (UNITS,), (UNITS,), (8,)]
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    tensors[0] = tensors[0].detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    units = [None, None, ORDER, None, None, ORDER]
    return tensors, units, [True, True, True, False, False, False]


def spread(mask, units, tensor):
    indices = torch.arange(UNITS) if units is None else units
    return mask[indices].reshape(-1, *[1] * (tensor.dim() - 1))


def formula(tensors, units, weighs):
    """Mask and effective tensors in float64, for autograd to differentiate."""
    total = torch.zeros(UNITS, dtype=torch.float64)
    for tensor, own, makes in zip(tensors, units, weighs, strict=True):
        if makes:
            sums = tensor.square().reshape(len(tensor), -1).sum(1)
            total = total.index_add(0, torch.arange(UNITS) if own is None else own, sums)
    mask = torch.sigmoid((SCALE * total - CUT**2) / TAU)
    return mask, [tensor * spread(mask, own, tensor) for tensor, own in zip(tensors, units, strict=True)]


def masked(tensors, units, weighs, dtypes):
    exact = [one.detach().double() for one in tensors]
    mask = formula(exact, units, weighs)[0].float()
    return mask_units(mask, steepness(mask, torch.tensor(2 * SCALE / TAU)), tensors, units, weighs, dtypes)


def by_hand(tensors, units, weighs, wanted, upstream):
    """The gradients that autograd finds in float64."""
    leaves = [one.detach().double().requires_grad_() for one in tensors]
    effective = [formula(leaves, units, weighs)[1][place] for place in wanted]
    gradients = [one.double() for one in upstream]
    return effective, torch.autograd.grad(effective, leaves, gradients, allow_unused=True)


def randoms(effective):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(one.shape, generator=generator).to(one.dtype) for one in effective]


@pytest.mark.parametrize("wanted", [range(6), (0,), (4,), (2, 5), (1, 3, 4)], ids=str)
def test_outputs_and_gradients_are_those_of_the_formula(wanted):
    tensors, units, weighs = tensors_of_a_layer()
    dtypes = [torch.float32 if place in wanted else None for place in range(6)]
    effective = masked(tensors, units, weighs, dtypes)
    upstream = randoms(effective)
    expected, gradients = by_hand(tensors, units, weighs, wanted, upstream)
    found = torch.autograd.grad(effective, tensors, upstream, allow_unused=True)
    for mine, theirs in zip(effective, expected, strict=True):
        assert torch.allclose(mine.double(), theirs, rtol=1e-6, atol=1e-7)
    for mine, theirs, tensor in zip(found, gradients, tensors, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert torch.allclose(mine.double(), theirs, rtol=1e-5, atol=1e-6)
            assert mine.dtype == tensor.dtype and mine.stride() == tensor.stride()


def test_outputs_that_nothing_uses_add_nothing():
    tensors, units, weighs = tensors_of_a_layer()
    effective = masked(tensors, units, weighs, [torch.float32] * 6)
    upstream = randoms(effective)[2:4]
    _, gradients = by_hand(tensors, units, weighs, (2, 3), upstream)
    found = torch.autograd.grad(effective[2:4], tensors, upstream, allow_unused=True)
    for mine, theirs in zip(found, gradients, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_in_a_lower_type_all_is_what_a_cast_behind_it_gives_bit_for_bit():
    tensors, units, weighs = tensors_of_a_layer()
    low = [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]
    effective = masked(tensors, units, weighs, low)
    upstream = randoms(effective)
    cast = [one.to(dtype) for one, dtype in zip(masked(tensors, units, weighs, [torch.float32] * 6), low, strict=True)]
    for one, two in zip(effective, cast, strict=True):
        assert one.dtype == two.dtype and torch.equal(one, two)
    for one, two in zip(*(torch.autograd.grad(each, tensors, upstream) for each in (effective, cast)), strict=True):
        assert one.dtype == torch.float32 and torch.allclose(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 1e-2)])
def test_other_types_of_weights_are_computed_exactly(dtype, tolerance):
    tensors, units, weighs = tensors_of_a_layer(dtype)
    effective = masked(tensors, units, weighs, [dtype] * 6)
    upstream = randoms(effective)
    expected, gradients = by_hand(tensors, units, weighs, range(6), upstream)
    found = torch.autograd.grad(effective, tensors, upstream)
    for mine, theirs in zip((*effective, *found), (*expected, *gradients), strict=True):
        assert mine.dtype == dtype
        assert torch.allclose(
            mine.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.detach().abs().max())
        )


def test_a_retained_graph_gives_its_gradient_again():
    tensors, units, weighs = tensors_of_a_layer()
    effective = masked(tensors, units, weighs, [torch.float32] * 6)
    upstream = randoms(effective)
    twice = [torch.autograd.grad(effective, tensors, upstream, retain_graph=True) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*twice, strict=True))


def test_a_weight_changed_since_the_forward_is_refused():
    tensors, units, weighs = tensors_of_a_layer()
    effective = masked(tensors, units, weighs, [torch.float32] * 6)
    with torch.no_grad():
        tensors[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(effective, tensors, randoms(effective))


def test_a_saturated_mask_has_a_slope_of_exactly_zero():
    mask = torch.tensor([0.0, 1e-30, 0.5, 1.0 - 2**-24, 1.0])
    expected = mask.double() * (1 - mask.double()) * 3e4
    assert torch.allclose(steepness(mask, torch.tensor(3e4)).double(), expected, rtol=1e-6, atol=0)
