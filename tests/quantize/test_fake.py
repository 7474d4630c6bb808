"""Fake quantization and its gradient against float64 formulas, torch's own operation and torchao's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdp import Pruner, soft_mask
from pdp.quantize.fake import fake_quantize, weight_scale
from pdp.quantize.frozen import Frozen
from pdp.quantize.sizes import packed, runs, unrun


def by_formula(values, scale, zero_point, lowest, highest):
    """In float64, with numpy: rint rounds halves to even."""
    steps = np.rint(values.double().numpy() / scale.double().numpy()) + zero_point
    return (np.clip(steps, lowest, highest) - zero_point) * scale.double().numpy(), (steps >= lowest) & (
        steps <= highest
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    bits=st.sampled_from([4, 8]),
    shape=st.sampled_from([(3, 5), (4, 2, 3, 3), (1, 7), (6, 1, 1)]),
    axis=st.sampled_from([0, 1]),
    zeros=st.floats(0, 1),
)
def test_weights_are_on_their_grid_and_zeros_stay_zero(seed, bits, shape, axis, zeros):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight[torch.rand(shape, generator=generator) < zeros] = 0
    bound = 2 ** (bits - 1) - 1
    scale = weight_scale(weight, bits, axis)
    others = tuple(one for one in range(weight.dim()) if one != axis)
    largest = np.abs(weight.numpy()).max(axis=others, keepdims=True)
    assert np.allclose(scale.numpy(), np.where(largest > 0, largest / bound, 1), rtol=1e-15)
    found = fake_quantize(weight, scale, 0, -bound, bound)
    expected, _ = by_formula(weight, scale, 0, -bound, bound)
    assert np.array_equal(found.numpy(), expected)
    assert (found[weight == 0] == 0).all()
    assert (found - weight).abs().le(scale / 2 * (1 + 1e-12)).all()


def test_the_gradient_goes_through_both_mask_and_grid():
    torch.manual_seed(0)
    weight = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(6, 9, dtype=torch.float64)
    cut, temperature = torch.tensor(0.4, dtype=torch.float64), 0.05
    effective = soft_mask(weight, cut, temperature) * weight
    scale = torch.full((6, 1), 0.01, dtype=torch.float64)  # so that many are clamped at 127 steps
    (fake_quantize(effective, scale, 0, -127, 127) * upstream).sum().backward()
    w = weight.detach().numpy()
    mask = 1 / (1 + np.exp(-(w**2 - 0.16) / temperature))
    slope = mask + 2 * w**2 / temperature * mask * (1 - mask)
    _, inside = by_formula(torch.tensor(mask * w), scale, 0, -127, 127)
    assert 0 < inside.mean() < 1
    assert np.allclose(weight.grad.numpy(), upstream.numpy() * inside * slope, rtol=1e-12)


@pytest.mark.parametrize("zero_point", [0.0, 113.0])
def test_a_learned_scale_has_the_gradient_of_lsq(zero_point):
    torch.manual_seed(1)
    values = torch.randn(4, 40, dtype=torch.float64) * 3
    upstream = torch.randn(4, 40, dtype=torch.float64)
    scale = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    (fake_quantize(values, scale, zero_point, 0, 255, 0.5) * upstream).sum().backward()
    steps = values.numpy() / 0.02
    rounded = np.rint(steps) + zero_point
    slope = np.where(rounded < 0, -zero_point, np.where(rounded > 255, 255 - zero_point, np.rint(steps) - steps))
    assert (rounded < 0).any() and (rounded > 255).any()
    assert np.isclose(scale.grad.item(), 0.5 * (slope * upstream.numpy()).sum(), rtol=1e-12)


@pytest.mark.parametrize("ranges", ["observed", "learned"])
@pytest.mark.parametrize("quantize", ["int4w", "int8"])
def test_activation_checkpointing_gives_the_same_gradients(quantize, ranges):
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    inputs = torch.randn(4, 8, dtype=torch.float64)
    options = {"start": "0", "ranges": ranges}
    pruner = Pruner(
        model, "gmp", sparsity=0.5, epochs=4, quantize=quantize, quantize_options=options, example_input=inputs
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner.attach(optimizer)
    pruner.start_epoch(0)
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    assert (len(trained) > len(list(model.parameters()))) == (ranges == "learned")
    model(inputs)  # finds the ranges
    seen = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        optimizer.zero_grad()
        forward(inputs).square().sum().backward()
        seen.append([one.grad for one in trained])
    for mine, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("learned", [False, True])
def test_transforms_of_torch_see_the_same_numbers_and_gradients(learned):
    torch.manual_seed(2)
    values, scale = torch.randn(3, 8, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64) / 50

    def loss(values, scale):
        return (fake_quantize(values, scale, 3.0, 0, 127, 0.25) ** 2).sum()

    argnums = (0, 1) if learned else (0,)
    found = torch.func.grad(loss, argnums=argnums)(values, scale)
    mine = [one.clone().requires_grad_() for one in (values, scale)[: len(argnums)]]
    loss(*(mine if learned else (mine[0], scale))).backward()
    assert all(torch.allclose(one, other.grad, rtol=1e-10) for one, other in zip(found, mine, strict=True))


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("factor", [0.5, "of the scale"])
def test_compiled_it_is_the_same_grid_whatever_the_factor_of_its_gradient(size, factor):
    """LSQ's factor may be larger than float32's precision allows beside the scale itself."""
    torch.manual_seed(3)
    values, upstream = torch.randn(3, 40), torch.randn(3, 40)
    values[0, 0], values[1, 1] = float("inf"), -float("inf")
    scale = torch.rand(3, 1) * size / 50
    by = scale**-2 / 30 if factor == "of the scale" else factor
    torch._dynamo.reset()
    compiled = torch.compile(fake_quantize, backend="aot_eager", fullgraph=True)
    found = []
    for function in (fake_quantize, compiled):
        own = [values.clone().requires_grad_(), scale.clone().requires_grad_()]
        made = function(*own, 0, -127, 127, by)
        found.append((made, *torch.autograd.grad(made, own, upstream)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert torch.isfinite(found[1][2]).all()
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-4, atol=0)


def test_torch_s_own_operation_reads_the_same_grid():
    torch.manual_seed(3)
    weight, upstream = torch.randn(16, 40), torch.randn(16, 40)
    scale = weight_scale(weight, 8) * 0.7  # some are clamped
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    found = fake_quantize(ours, scale, 0, -127, 127)
    zeros = torch.zeros(16, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale.flatten(), zeros, 0, -127, 127)
    # It multiplies by 1 / s where we divide: at a half the two may round apart.
    steps = weight / scale
    sure = ((steps - steps.floor()) - 0.5).abs() > 1e-4
    assert sure.float().mean() > 0.99 and torch.allclose(found[sure], expected[sure], rtol=1e-6)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.equal(ours.grad[sure], theirs.grad[sure]) and (ours.grad == 0).any()


@pytest.mark.parametrize(("bits", "bound"), [(8, 127), (4, 7)])
def test_torchao_reads_the_same_grid(bits, bound):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    torch.manual_seed(4)
    weight = torch.randn(8, 36)
    weight[:, ::3] = 0
    scale = weight_scale(weight, bits)
    zeros = torch.zeros(8, dtype=torch.int32)
    integers = primitives.quantize_affine(weight, (1, 36), scale.flatten(), zeros, torch.int8, -bound, bound)
    expected = primitives.dequantize_affine(
        integers, (1, 36), scale.flatten(), zeros, torch.int8, -bound, bound, output_dtype=torch.float32
    )
    frozen = Frozen("int8", bits, {"w": scale})
    assert torch.equal(frozen.integers("w", weight), integers)
    assert torch.equal(frozen.weight("w", weight), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.just(0), st.integers(-7, 7)), max_size=900), st.sampled_from([4, 8]))
def test_runs_and_nibbles_hold_every_number(numbers, bits):
    values = np.array(numbers, dtype=np.int8)
    for one in (values, np.concatenate([np.zeros(600, np.int8), values])):
        gaps, kept = runs(one)
        assert np.array_equal(unrun(gaps, kept, len(one)), one)
        data = packed(one, bits)
        assert len(data) == -(-len(one) * bits // 8)
    if bits == 4:
        pairs = np.frombuffer(packed(values, 4), np.uint8)
        halves = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[: len(values)].astype(np.int8)
        assert np.array_equal(np.where(halves > 7, halves - 16, halves), values)
