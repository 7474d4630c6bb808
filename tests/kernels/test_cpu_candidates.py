"""The kernels of LBC's mask on the CPU against its definition in plain operations."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.kernels.cpu.candidates import host_prune_by_candidates
from pdp.masks.candidates import prune_by_candidates

pytestmark = pytest.mark.skipif(host_kernels.found() is None, reason="Numba is not installed")

# Shape, and whether the weight lies in channels_last order.
CASES = {
    "linear": ((24, 64), False),
    "linear of many": ((700, 1024), False),
    "a single row": ((1, 16), False),
    "convolution": ((10, 32, 3, 3), False),
    "convolution, channels last": ((10, 32, 3, 3), True),
    "a window as wide as its inputs, channels last": ((6, 16, 4, 4), True),
    "one by one, channels last": ((16, 64, 1, 1), True),
    "in one dimension": ((6, 32, 5), False),
    "in three dimensions": ((4, 16, 2, 3, 3), False),
}
KINDS = [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8), (1, 16), (5, 6)]
DIVISIBLE = [(case, *kind) for case, (shape, _) in CASES.items() for kind in KINDS if not shape[1] % kind[1]]


def made(case, n, m, left):
    """Weight, mask, scores, which candidates are alive, what they contain, and an upstream gradient."""
    shape, last = CASES[case]
    generator = torch.Generator().manual_seed(left)
    weight = torch.randn(shape, generator=generator)
    weight = weight.contiguous(memory_format=torch.channels_last) if last else weight
    chosen = itertools.combinations(range(m), n)
    candidates = torch.tensor([[float(index in one) for index in range(m)] for one in chosen])
    groups = weight.movedim(1, -1).unflatten(-1, (-1, m)).shape[:-1]
    scores = torch.randn(*groups, len(candidates), generator=generator)
    alive = scores.argsort(dim=-1).argsort(dim=-1) < left
    keep = ((alive.float() @ candidates) > 0).flatten(-2).movedim(-1, 1)
    upstream = torch.randn(shape, generator=generator)
    return weight, keep, scores, alive, candidates, upstream


def found(function, weight, keep, scores, alive, candidates, upstream):
    """The value, its gradients, and the gradients of a sum of these by weight and upstream."""
    weight, scores, upstream = (one.clone().requires_grad_() for one in (weight, scores, upstream))
    effective = function(weight, keep, scores, alive, candidates, 1)
    first = torch.autograd.grad(effective, (weight, scores), upstream, retain_graph=True)
    slopes = torch.autograd.grad(effective, (weight, scores), upstream, create_graph=True)
    second = torch.autograd.grad(slopes[0].sin().sum() + slopes[1].sin().sum(), (weight, upstream))
    return effective.detach(), *first, *second


@pytest.mark.parametrize("case, n, m", DIVISIBLE)
@pytest.mark.parametrize("left", [1, 3, 100])
def test_values_and_gradients_are_those_of_the_definition(case, n, m, left):
    given = made(case, n, m, left)
    mine, plain = found(host_prune_by_candidates, *given), found(prune_by_candidates, *given)
    assert torch.equal(mine[0], plain[0]) and mine[0].stride() == given[0].stride()
    assert torch.equal(mine[1], plain[1])  # of the weight
    for one, other in zip(mine[2:], plain[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
    assert not mine[2][~given[3]].any()


@pytest.mark.parametrize("case", ["linear", "convolution", "convolution, channels last"])
def test_scores_learn_the_sum_of_weight_times_gradient_in_float64(case):
    weight, keep, scores, alive, candidates, upstream = made(case, 2, 4, 4)
    products = (weight.double() * upstream.double()).movedim(1, -1).unflatten(-1, (-1, 4))
    pairs = itertools.combinations(range(4), 2)
    sums = torch.stack([products[..., first] + products[..., second] for first, second in pairs], -1)
    mine = found(host_prune_by_candidates, weight, keep, scores, alive, candidates, upstream)
    torch.testing.assert_close(mine[2].double(), sums * alive, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dead", [False, True])
def test_a_score_that_is_no_number_is_no_less_seen(value, dead):
    weight, keep, scores, alive, candidates, upstream = made("convolution", 2, 4, 3)
    place = (~alive if dead else alive).nonzero()[5].tolist()
    scores[tuple(place)] = value
    given = (weight, keep, scores, alive, candidates, upstream)
    mine, plain = found(host_prune_by_candidates, *given), found(prune_by_candidates, *given)
    assert int(mine[0].isnan().sum()) == 4  # its group
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_weights_and_gradients_that_are_no_numbers():
    weight, keep, scores, alive, candidates, upstream = made("linear", 2, 4, 2)
    for place, value in enumerate([math.nan, math.inf, -math.inf, -0.0, 1e-45]):
        weight[place, 8:16], upstream[place, :12] = value, value
    given = (weight, keep, scores, alive, candidates, upstream)
    mine, plain = found(host_prune_by_candidates, *given)[:3], found(prune_by_candidates, *given)[:3]
    for one, other in zip(mine[:2], plain[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(one.signbit()[~one.isnan()], other.signbit()[~one.isnan()])
    # A product of matrices makes the sum of a candidate NaN where another weight of the group is; the sum itself is not.
    sums = (weight * upstream).unflatten(-1, (-1, 4))[..., None, :].where(candidates.bool(), 0.0).sum(-1) * alive
    torch.testing.assert_close(mine[2], sums, equal_nan=True)


def test_what_changes_between_forward_and_backward_is_refused():
    for place in (0, 1, 3):
        given = made("linear", 2, 4, 3)
        weight, keep, scores, alive, candidates, upstream = given
        stored = weight.clone().requires_grad_()
        effective = host_prune_by_candidates(stored, keep, scores.requires_grad_(), alive, candidates, 1)
        with torch.no_grad():
            (stored, keep, None, alive)[place].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            effective.backward(upstream)


def test_a_weight_that_was_given_other_data_since_has_the_same_gradients():
    weight, keep, scores, alive, candidates, upstream = made("convolution, channels last", 2, 4, 3)
    results = []
    for change in (lambda one: one, lambda one: one.double(), lambda one: one.contiguous()):
        mine, own = weight.clone().requires_grad_(), scores.clone().requires_grad_()
        loss = (host_prune_by_candidates(mine, keep, own, alive, candidates, 1) * upstream).sum()
        mine.data = change(mine.data)
        loss.backward()
        results.append((mine.grad.float(), own.grad))
    for one in results[1:]:
        assert torch.equal(results[0][0], one[0]) and torch.equal(results[0][1], one[1])


def net(last=False, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 5))
    model = model.to(dtype)
    model = model.to(memory_format=torch.channels_last) if last else model
    pruner = Pruner(model, "lbc", "2:4", epochs=4, schedule={"warmup": "0ep", "ramp": "3ep"})
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    pruner.attach(optimizer)
    return model, pruner, optimizer


INPUTS = torch.randn(8, 8, 6, 6, generator=torch.Generator().manual_seed(1))


def trained(model, pruner, optimizer, epochs, inputs=INPUTS):
    for epoch in epochs:
        pruner.start_epoch(epoch)
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
    return [one.detach().clone() for one in (*model.parameters(), *pruner.method.extras.values())]


def without_kernels(monkeypatch):
    monkeypatch.setattr(host_kernels, "usable", lambda *weights: False)


@pytest.mark.parametrize("last", [False, True])
def test_a_training_with_them_is_the_training_without(last, monkeypatch):
    mine = trained(*net(last), range(4))
    without_kernels(monkeypatch)
    for one, other in zip(mine, trained(*net(last), range(4)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_model_that_takes_another_memory_order_in_the_middle(monkeypatch):
    results = []
    for kernels in (True, False):
        if not kernels:
            without_kernels(monkeypatch)
        model, pruner, optimizer = net()
        trained(model, pruner, optimizer, range(2))
        model.to(memory_format=torch.channels_last)
        results.append(trained(model, pruner, optimizer, range(2, 3)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(dtype):
    model, pruner, optimizer = net(dtype=dtype)
    trained(model, pruner, optimizer, range(2), INPUTS.to(dtype))
    layer = pruner.layers[0]
    assert pruner.method.effective_weight(layer, layer.weight).dtype == dtype


def test_transforms_compiled_and_copied_models_are_the_model():
    model, pruner, optimizer = net()
    trained(model, pruner, optimizer, range(2))
    parameters = {name: one.detach() for name, one in model.named_parameters()}

    def loss(values, inputs):
        return functional_call(model, values, (inputs,)).square().mean()

    right = torch.autograd.grad(model(INPUTS).square().mean(), list(model.parameters()))
    for one, other in zip(grad(loss)(parameters, INPUTS).values(), right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    each = vmap(grad(loss), (None, 0))(parameters, INPUTS[:, None])
    for one, other in zip(each.values(), right, strict=True):
        torch.testing.assert_close(one.mean(0), other, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.compile(model, backend="eager")(INPUTS), model(INPUTS), rtol=0, atol=0)
    twin = copy.deepcopy(pruner)
    optimizer.zero_grad()
    twin.model(INPUTS).square().mean().backward()
    assert all(one.grad is None for one in model.parameters())
    for one, other in zip(twin.model.parameters(), right, strict=True):
        torch.testing.assert_close(one.grad, other, rtol=1e-5, atol=1e-7)
