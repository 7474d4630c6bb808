"""Small layers masked together in a forward of the whole model: the same numbers as for each layer by itself."""

import copy

import pytest
import torch
from channel_models import IMAGE, Residual, train
from small_models import batch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.masks.soft import soft_prune
from pdp.patterns import make_pattern, unit_forward, weight_forward

pytestmark = pytest.mark.skipif(host_kernels.found() is None, reason="Numba is not installed")
INPUTS = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three layers; `between` may do something before the second, `kind` says how activations are kept."""

    def __init__(self, kind="plain"):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(30, 40), nn.Linear(40, 401), nn.Linear(401, 2)
        self.kind, self.between = kind, lambda: None

    def forward(self, inputs):
        hidden = self.first(inputs).relu()
        self.between()
        if self.kind == "plain":
            return self.third(self.second(hidden).relu())
        part = lambda values: self.third(self.second(values).relu())  # noqa: E731
        return checkpoint(part, hidden, use_reentrant=self.kind == "reentrant")


def pruned(kind="plain"):
    model = Net(kind)
    pruner = Pruner(model, sparsity=0.5, epochs=4, schedule={"warmup": "0ep", "ramp": "2ep"}, temperature=1e-2)
    pruner.start_epoch(0)
    return model, pruner


def trained(kind="plain"):
    """Outputs, gradients and weights of a few steps."""
    model, pruner = pruned(kind)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    for epoch in range(3):
        pruner.start_epoch(epoch)
        for _ in range(2):
            output = model(INPUTS)
            output.square().mean().backward()
            seen += [output.detach(), *(one.grad.clone() for one in model.parameters())]
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    return [*seen, *(one.detach() for one in model.parameters())]


@pytest.mark.parametrize("kind", ["plain", "checkpointed", "reentrant"])
def test_training_is_the_same_bit_for_bit(kind, monkeypatch):
    together, made = trained(kind), []
    masks = host_kernels.found()
    counting = masks._replace(effective=lambda *given: made.append(len(given[0])) or masks.effective(*given))
    monkeypatch.setattr(host_kernels, "found", lambda: counting)
    again = trained(kind)
    assert made and set(made) == {3}
    monkeypatch.setattr(weight_forward, "_SMALL", 0)
    made.clear()
    alone = trained(kind)
    assert not made
    for one, other, third in zip(together, again, alone, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)


def test_a_weight_that_the_model_changes_in_its_forward_is_masked_as_it_is_then(monkeypatch):
    model, _ = pruned()

    def double():
        with torch.no_grad():
            model.second.weight.mul_(2)

    model.between = double
    output = model(INPUTS)
    output.sum().backward()
    model.between, gradient = (lambda: None), model.second.weight.grad.clone()
    monkeypatch.setattr(weight_forward, "_SMALL", 0)
    assert torch.equal(model(INPUTS), output)
    model.zero_grad()
    model(INPUTS).sum().backward()
    assert torch.equal(model.second.weight.grad, gradient)


def test_a_copy_in_a_forward_is_masked_by_its_own_weights():
    model, _ = pruned()
    twin, seen = copy.deepcopy(model), []
    with torch.no_grad():
        twin.first.weight.mul_(3)
    expected = twin(INPUTS)
    model.between = lambda: seen.append(twin(INPUTS))
    before = model(INPUTS)
    assert torch.equal(seen[0], expected) and not torch.equal(before, expected)


def test_a_layer_used_twice_and_one_not_used_have_their_gradients():
    model, pruner = pruned()
    first = model.first(INPUTS)
    found = {}
    for small in (True, False):
        model.zero_grad()
        if not small:
            pruner.pattern._forwards.clear()
        else:
            pruner.pattern.begin_forward(pruner.layers, 1e-2)
        (model.first(INPUTS) + model.first(2 * INPUTS)).square().sum().backward()
        found[small] = model.first.weight.grad.clone()
        assert model.second.weight.grad is None
        pruner.pattern.end_forward()
    assert torch.equal(found[True], found[False]) and first.shape == (8, 40)


def _forward(layers):
    pattern = make_pattern("random")
    return weight_forward.Forward(layers, 1e-2, [layer.weight for layer in layers], pattern._host_masks)


def test_a_forward_that_raises_leaves_nothing_behind():
    model, pruner = pruned()

    def fail():
        raise ValueError

    model.between = fail
    with pytest.raises(ValueError):
        model(INPUTS)
    assert pruner.pattern._forwards == []
    with torch.no_grad():  # one by one, as nothing is kept
        assert not _forward(pruner.layers).takes_part
    assert _forward(pruner.layers).takes_part


class Parts(nn.Module):
    """Two layers whose results have nothing to do with each other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(30, 40), nn.Linear(30, 50)

    def forward(self, inputs):
        return self.first(inputs), self.second(inputs)


@pytest.mark.parametrize("small", [400_000, 0])
def test_parts_go_backward_one_after_the_other_with_a_step_between(small, monkeypatch):
    """As without masks: layers that are masked together are tied neither by their buffers nor by their versions."""
    monkeypatch.setattr(weight_forward, "_SMALL", small)
    model = Parts()
    pruner = Pruner(model, sparsity=0.5, epochs=4, schedule={"warmup": "0ep", "ramp": "2ep"}, temperature=1e-2)
    pruner.start_epoch(0)
    first, second = model(INPUTS)
    first.square().sum().backward()
    assert model.second.weight.grad is None
    with torch.no_grad():
        model.first.weight.sub_(0.1 * model.first.weight.grad)
    second.square().sum().backward()
    twin = Parts()
    masked = soft_prune(twin.second.weight, pruner.layers[1].state["cut"], 1e-2)
    right = torch.autograd.grad(
        nn.functional.linear(INPUTS, masked, twin.second.bias).square().sum(), twin.second.weight
    )
    torch.testing.assert_close(model.second.weight.grad, right[0], rtol=1e-5, atol=1e-5)
    third, _ = model(INPUTS)
    with torch.no_grad():
        model.first.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        third.sum().backward()


@pytest.mark.parametrize("small", [400_000, 0])
def test_second_derivatives_are_those_of_the_formula(small, monkeypatch):
    monkeypatch.setattr(weight_forward, "_SMALL", small)
    model, pruner = pruned()
    plain, cuts = Net(), [layer.state["cut"] for layer in pruner.layers]
    masked = {
        layer.parameter: soft_prune(plain.get_parameter(layer.parameter), cut, 1e-2)
        for layer, cut in zip(pruner.layers, cuts, strict=True)
    }
    found = []
    for outputs, own in (
        (model(INPUTS), model),
        (torch.func.functional_call(plain, masked, (INPUTS,)), plain),
    ):
        weights = [own.first.weight, own.second.weight, own.third.weight]
        slopes = torch.autograd.grad(outputs.square().mean(), weights, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in slopes), weights))
    for one, right in zip(*found, strict=True):
        torch.testing.assert_close(one, right, rtol=1e-4, atol=1e-6)


def test_bundles_of_few_weights_are_the_same_bit_for_bit(monkeypatch):
    whole = trained()
    monkeypatch.setattr(weight_forward, "MOST", 1300)  # the first alone, the second alone, the third
    assert all(torch.equal(one, other) for one, other in zip(whole, trained(), strict=True))


@pytest.mark.parametrize("small", [400_000, 0])
def test_a_gradient_s_hook_is_called_only_where_one_arrives(small, monkeypatch):
    monkeypatch.setattr(weight_forward, "_SMALL", small)
    model, _ = pruned()
    seen = []
    for name in ("first", "third"):
        weight = getattr(model, name).weight
        weight.register_hook(lambda slope, name=name: seen.append(name) or slope * 2)
        weight.register_post_accumulate_grad_hook(lambda one, name=name: seen.append(f"{name}, added"))
    model.second.weight.register_hook(lambda slope: seen.append("second"))
    model.first(INPUTS)  # alone
    model.between = lambda: seen.append("between")
    model.third.forward, whole = (lambda values: values.sum() * 0 + model.kept.sum()), model.third.forward
    model.first.register_forward_hook(lambda module, inputs, output: setattr(model, "kept", output))
    model(INPUTS).backward()  # through the first layer, and with zeros through the second
    assert seen == ["between", "second", "first", "first, added"]
    model.third.forward = whole


@pytest.mark.parametrize("small", [400_000, 0])
@pytest.mark.parametrize("thaws", [True, False])
@pytest.mark.parametrize("read", [lambda layer: layer.weight, lambda layer: next(layer.parameters())])
def test_what_the_forward_freezes_or_thaws_is_so_from_then_on(read, thaws, small, monkeypatch):
    monkeypatch.setattr(weight_forward, "_SMALL", small)
    model, _ = pruned()
    model.second.weight.requires_grad_(not thaws)
    model.between = lambda: read(model.second).requires_grad_(thaws)
    model(INPUTS).sum().backward()
    assert (model.second.weight.grad is not None) == thaws
    assert model.first.weight.grad is not None


def test_a_transform_inside_of_the_forward_may_be_the_first_to_read():
    model, _ = pruned()
    right = model.first(INPUTS)
    found = []
    model.between = lambda: found.append(torch.func.vmap(model.second)(right))
    model(INPUTS)
    torch.testing.assert_close(found[0], model.second(right))


def _residual(pattern, joint):
    torch.manual_seed(0)
    options = {"example_input": IMAGE, "sparsity": 0.5} if pattern == "channel" else {"temperature": 1e-3}
    model = Residual()
    pruner = Pruner(model, pattern=pattern, epochs=4, schedule={"warmup": "0ep", "ramp": "2ep"}, **options)
    train(model, pruner, range(4), 2)
    nodes = model(batch(9)[0]).grad_fn
    seen, names = [nodes], set()
    while seen:
        one = seen.pop()
        if one is not None and one.name() not in names:
            names.add(one.name())
        seen += [] if one is None else [after for after, _ in one.next_functions]
    assert any("HostJoint" in name or "HostUnits" in name for name in names) == joint
    return [one.detach() for one in model.parameters()]


@pytest.mark.parametrize("pattern", ["2:4", "channel"])
@pytest.mark.parametrize("most", [weight_forward.MOST, 200])
def test_groups_and_channels_train_the_same_bit_for_bit_together_and_alone(pattern, most, monkeypatch):
    for module in (weight_forward, unit_forward):
        monkeypatch.setattr(module, "MOST", most)  # with one node, and with several
    together = _residual(pattern, True)
    monkeypatch.setattr(weight_forward, "_SMALL", 0)
    monkeypatch.setattr(unit_forward, "_together", lambda layers: {})
    for one, other in zip(together, _residual(pattern, False), strict=True):
        assert torch.equal(one, other)
