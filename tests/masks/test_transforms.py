"""Second derivatives and `torch.func`, against finite differences and against autograd."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from pdp import Pruner
from pdp.masks.soft import soft_mask, soft_prune
from pdp.masks.straight_through import straight_through
from pdp.masks.units import mask_units, steepness

NOW = {"warmup": "0ep", "ramp": "1ep"}


@pytest.mark.parametrize("function", [soft_mask, soft_prune])
def test_second_derivatives_against_differences(function):
    weight = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda one: function(one, 0.5, 0.3), (weight,))


def test_straight_through_passes_second_derivatives_on_too():
    weight, keep = torch.randn(12, dtype=torch.float64).requires_grad_(), torch.arange(12) % 2 == 0
    (slope,) = torch.autograd.grad(straight_through(weight, keep).square().sum(), weight, create_graph=True)
    assert torch.equal(slope, 2 * weight * keep)
    assert torch.equal(torch.autograd.grad(slope.sum(), weight)[0], torch.full((12,), 2.0, dtype=torch.float64))


def test_second_derivatives_of_units_against_differences():
    generator = torch.Generator().manual_seed(0)
    filters, norm = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (4,)))

    def masked(filters, norm):
        squares = filters.detach().square().sum(1)
        mask = torch.sigmoid((squares - 2) / 1.5)
        kinds = ([None, None], [True, False], [torch.float64, torch.float64])
        return mask_units(mask, steepness(mask, torch.tensor(2 / 1.5, dtype=torch.float64)), [filters, norm], *kinds)

    def slopes(filters, norm):
        outputs = masked(filters, norm)
        return torch.autograd.grad(sum(one.sin().sum() for one in outputs), (filters, norm), create_graph=True)

    given = (filters.requires_grad_(), norm.requires_grad_())
    product = torch.autograd.grad(sum(one.sum() for one in slopes(*given)), given)
    for place in range(2):
        step = torch.zeros_like(given[place]).view(-1)
        for index in range(step.numel()):
            step.zero_()[index] = 1e-6
            moved = [[one.detach().clone().requires_grad_() for one in given] for _ in range(2)]
            with torch.no_grad():
                moved[0][place].view(-1).add_(step)
                moved[1][place].view(-1).sub_(step)
            above, below = (sum(float(one.sum()) for one in slopes(*ones)) for ones in moved)
            assert float(product[place].view(-1)[index]) == pytest.approx((above - below) / 2e-6, rel=1e-5, abs=1e-7)


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def own_gradients(model, images, **how):
    return torch.autograd.grad(model(images).square().mean(), list(model.parameters()), **how)


@pytest.mark.parametrize("pattern", ["random", "2:4", "channel"])
@pytest.mark.parametrize("method", ["pdp", "movement"])
def test_transforms_of_a_pruned_model_are_autograds(method, pattern):
    model, images = net(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    share = None if pattern == "2:4" else 0.5
    pruner = Pruner(model, method, pattern, share, epochs=4, schedule=NOW, example_input=images[:1])
    pruner.start_epoch(0)
    parameters = {name: one.detach() for name, one in model.named_parameters()}

    def loss(values, inputs):
        return functional_call(model, values, (inputs,)).square().mean()

    expected = dict(zip(parameters, own_gradients(model, images), strict=True))
    whole = grad(loss)(parameters, images)
    single = vmap(grad(lambda values, one: loss(values, one[None])), in_dims=(None, 0))(parameters, images)
    moved = {name: torch.randn_like(one) for name, one in parameters.items()}
    _, tangent = jvp(lambda values: loss(values, images), (parameters,), (moved,))
    torch.testing.assert_close(
        tangent, sum((expected[name] * moved[name]).sum() for name in moved), rtol=1e-3, atol=1e-6
    )
    for name, right in expected.items():
        torch.testing.assert_close(whole[name], right, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(single[name].mean(0), right, rtol=1e-3, atol=1e-6)
    slopes = own_gradients(model, images, create_graph=True)
    along = sum((one * moved[name]).sum() for one, name in zip(slopes, moved, strict=True))
    products = torch.autograd.grad(along, list(model.parameters()))
    _, others = jvp(grad(lambda values: loss(values, images)), (parameters,), (moved,))
    for mine, theirs in zip(products, others.values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_channel_masks_compile_without_gradients(mode):
    torch._dynamo.reset()
    model, images = net(), torch.randn(2, 3, 8, 8)
    pruner = Pruner(model, pattern="channel", sparsity=0.5, epochs=4, schedule=NOW, example_input=images[:1])
    pruner.start_epoch(0)
    with mode():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(images)
        torch.testing.assert_close(compiled, model(images))
