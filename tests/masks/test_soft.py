"""The soft mask and its gradient against the formulas in float64, and against the numbers of another implementation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mask_formulas import reference

from pdp import soft_mask
from pdp.kernels.cpu.masks import host_prune
from pdp.masks.soft import soft_prune

GOLDEN = Path(__file__).parents[1] / "golden"


@given(
    weights=st.lists(st.floats(-0.5, 0.5, width=32), min_size=1, max_size=30),
    cut=st.floats(0, 0.375, width=32),
    temperature=st.sampled_from([1e-5, 1e-4, 1e-3, 1e-2]),
)
def test_mask_and_gradient_follow_the_formulas(weights, cut, temperature):
    array = np.array(weights, dtype=np.float32)
    mask, slope = reference(array, cut, temperature)
    # float32 rounds w^2 - t^2 to about 1e-8 of its size, which the temperature divides.
    room = 4e-7 * (array.astype(np.float64) ** 2 + cut**2) / temperature + 1e-6
    weight = torch.tensor(array, requires_grad=True)
    computed = soft_mask(weight, cut, temperature)
    assert (np.abs(computed.detach().numpy() - mask) <= room).all()
    soft_prune(weight, cut, temperature).sum().backward()
    assert (
        np.abs(weight.grad.numpy() - slope) <= room * (1 + 4 * array.astype(np.float64) ** 2 / temperature) * 2
    ).all()


@pytest.mark.parametrize("function", [soft_mask, soft_prune])
def test_gradient_in_float64_equals_differences(function):
    weight = torch.randn(40, dtype=torch.float64).mul_(0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: function(w, torch.tensor(0.04, dtype=torch.float64), 1e-3), weight)


@pytest.mark.parametrize("name", ["mask_4x6", "mask_64x64"])
def test_another_implementation_at_its_threshold(name):
    golden = np.load(GOLDEN / f"{name}.npz")
    weight = torch.tensor(golden["weight"], requires_grad=True)
    threshold, temperature = float(golden["threshold"]), float(golden["temperature"])
    assert (soft_mask(weight, threshold, temperature).detach().numpy() - golden["mask"]).__abs__().max() < 2e-5
    soft_prune(weight, threshold, temperature).sum().backward()
    difference = np.abs(weight.grad.numpy() - golden["gradient_of_sum"]).reshape(-1)
    # Its gradient flows through the threshold into the two weights that define it.
    distance = np.abs(np.abs(golden["weight"]) - threshold).reshape(-1)
    elsewhere = np.ones_like(distance, dtype=bool)
    elsewhere[np.argsort(distance)[:2]] = False
    scale = np.maximum(1, np.abs(golden["gradient_of_sum"]).reshape(-1))
    assert (difference / scale)[elsewhere].max() < 2e-4


def test_at_the_cut_the_mask_is_half_and_the_slope_boosted():
    for t, expected in ((0.01, 1.0), (0.02, 2.5), (0.05, 13.0), (0.1, 50.5)):
        weight = torch.tensor([t, -t], dtype=torch.float64, requires_grad=True)
        assert soft_mask(weight, torch.tensor(t, dtype=torch.float64), 1e-4).tolist() == pytest.approx([0.5, 0.5])
        soft_prune(weight, torch.tensor(t, dtype=torch.float64), 1e-4).sum().backward()
        assert weight.grad.tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize("cut", [-math.inf, 0.0, 0.05, 1e15, math.inf])
@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e4])
def test_nothing_overflows(cut, temperature):
    weight = torch.tensor([0.0, 1e-30, -0.05, 0.3, 1e10, -3e38], requires_grad=True)
    effective = soft_prune(weight, cut, temperature)
    effective.sum().backward()
    assert torch.isfinite(effective).all() and torch.isfinite(weight.grad).all()
    assert torch.isfinite(soft_mask(weight, cut, temperature)).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e4])
def test_nothing_overflows_where_each_weight_has_its_cut(temperature):
    values = torch.tensor([0.0, 1e-30, -0.05, 0.3, 1e10, -3e38])
    cuts = torch.tensor([-math.inf, 0.0, 0.05, 1e15, math.inf])
    together = values.expand(5, 6).clone().requires_grad_()
    effective = soft_prune(together, cuts[:, None].expand(5, 6), temperature)
    effective.sum().backward()
    for cut, row, slope in zip(cuts, effective, together.grad, strict=True):
        one = values.clone().requires_grad_()
        right = soft_prune(one, cut, temperature)
        right.sum().backward()
        assert torch.equal(row, right) and torch.equal(slope, one.grad)


def test_infinite_cuts_keep_all_or_nothing():
    weight = torch.randn(50).mul_(0.1).requires_grad_()
    everything = soft_prune(weight, -math.inf, 1e-4)
    assert torch.equal(everything, weight)
    everything.sum().backward()
    assert torch.equal(weight.grad, torch.ones(50))
    weight.grad = None
    nothing = soft_prune(weight, math.inf, 1e-4)
    nothing.sum().backward()
    assert torch.count_nonzero(nothing) == 0 and weight.grad.abs().max() < 1e-5


def test_nothing_but_weight_and_cut_is_kept_for_backward():
    weight = torch.randn(1000, requires_grad=True)
    cut = torch.tensor(0.5)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        soft_prune(weight, cut, 1e-2)
        effective = host_prune(weight, cut, 1e-2)
    assert [tensor.data_ptr() for tensor in kept] == [tensor.data_ptr() for tensor in (weight, cut)]
    assert [tensor.data_ptr() for tensor in effective.grad_fn.kept] == [weight.data_ptr()]


def test_half_precision_weights_are_masked_in_float32():
    weight = torch.linspace(-0.2, 0.2, 200).bfloat16()
    mask = soft_mask(weight, 0.1, 1e-3)
    assert mask.dtype == torch.float32
    assert np.abs(mask.numpy() - reference(weight.float().numpy(), 0.1, 1e-3)[0]).max() < 1e-5
    assert soft_prune(weight, 0.1, 1e-3).dtype == torch.bfloat16


def test_the_temperature_may_be_a_tensor():
    weight = torch.randn(20) * 0.1
    assert torch.allclose(soft_mask(weight, 0.1, torch.tensor(1e-3)), soft_mask(weight, 0.1, 1e-3), atol=1e-6)


def test_no_subnormal_numbers_reach_a_convolution():
    # With t = 0.1 and tau = 1e-4 the formula's masks near zero are about 1e-44.
    weight = torch.linspace(-0.2, 0.2, 40_001).requires_grad_()
    effective = soft_prune(weight, 0.1, 1e-4)
    effective.backward(torch.full_like(weight, 1e-3))
    smallest = torch.finfo(torch.float32).tiny
    for values in (effective.detach(), weight.grad, soft_mask(weight.detach(), 0.1, 1e-4)):
        assert not ((values != 0) & (values.abs() < smallest)).any()
    assert (effective[weight.abs() < 0.05] == 0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradient_layout", [torch.contiguous_format, torch.channels_last])
def test_large_weights_in_pieces_equal_the_formula(layout, gradient_layout):
    weight = (torch.randn(260, 130, 3, 3) * 0.05).contiguous(memory_format=layout).requires_grad_()
    upstream = torch.randn(260, 130, 3, 3).contiguous(memory_format=gradient_layout)
    effective = soft_prune(weight, 0.06, 1e-3)
    effective.backward(upstream)
    mask, slope = reference(weight.detach().numpy(), 0.06, 1e-3)
    np.testing.assert_allclose(effective.detach().numpy(), mask * weight.detach().numpy(), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(weight.grad.numpy(), slope * upstream.numpy(), rtol=1e-3, atol=1e-6)
    assert effective.stride() == weight.stride()
