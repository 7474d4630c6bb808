"""LoRA under a mask: the sum is masked, adapters alone are trained, merging changes nothing and keeps the zeros."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import pdp


def small(bias=True):
    return nn.Sequential(nn.Linear(8, 12, bias), nn.Tanh(), nn.Linear(12, 4, bias)).double()


def pruned(model, method="wanda", pattern="2:4", inputs=None):
    return pdp.Pruner(model, method, pattern, epochs=2, calibration=[inputs])


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_is_trained_is_the_masked_sum_and_what_is_merged_is_the_same(method):
    inputs, wanted = torch.randn(20, 8, dtype=torch.double), torch.randn(20, 4, dtype=torch.double)
    model = small()
    pruner = pruned(model, method, inputs=inputs)
    stored = copy.deepcopy(model.state_dict())
    trained = pruner.add_adapters(rank=2, alpha=6)
    assert [one.requires_grad for one in model.parameters()] == [False] * 4 and len(trained) == 4
    optimizer = torch.optim.AdamW(trained, 0.05)
    for epoch in range(2):
        pruner.start_epoch(epoch)
        for _ in range(3):
            functional.mse_loss(model(inputs), wanted).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    hidden = inputs
    for layer, module in zip(pruner.layers, [model[0], model[2]], strict=True):
        a, b = layer.adapter.a, layer.adapter.b
        assert b.any()
        weight = (module.weight + 6 / 2 * b @ a) * layer.state["keep"]
        hidden = functional.linear(hidden, weight, module.bias)
        hidden = torch.tanh(hidden) if module is model[0] else hidden
    before = model(inputs).detach()
    torch.testing.assert_close(before, hidden.detach())
    with pruner.hard():
        torch.testing.assert_close(model(inputs).detach(), before)
    with pruner.baked():
        assert int((model[0].weight == 0).sum()) == 48 and not torch.equal(model[0].weight, stored["0.weight"])
    assert torch.equal(model[0].weight, stored["0.weight"])
    state = pruner.state_dict()
    pruner.finalize()
    torch.testing.assert_close(model(inputs).detach(), before)
    assert set(model.state_dict()) == set(stored)
    for module in (model[0], model[2]):
        assert bool((module.weight.view(-1, 4).count_nonzero(1) == 2).all())
    # A checkpoint of a run that goes on.
    other = small()
    again = pdp.Pruner(other, method, "2:4", epochs=2)
    again.add_adapters(rank=2, alpha=6)
    other.load_state_dict(stored)
    again.load_state_dict(state)
    torch.testing.assert_close(other(inputs).detach(), before)


def test_the_same_numbers_as_pefts_adapters_where_nothing_is_pruned():
    peft = pytest.importorskip("peft")
    inputs = torch.randn(6, 8)
    model = small().float()
    model[0].weight.data[0, 0] = 0
    theirs = copy.deepcopy(model)
    pruner = pdp.Pruner(model, "held", "random", epochs=1, exclude=["2"])
    pruner.add_adapters(rank=3, alpha=12)
    options = peft.LoraConfig(r=3, lora_alpha=12, target_modules=["0"])
    theirs = peft.inject_adapter_in_model(options, theirs)
    with torch.no_grad():
        adapter = pruner.layers[0].adapter
        assert adapter.a.shape == theirs[0].lora_A["default"].weight.shape
        theirs[0].lora_A["default"].weight.copy_(adapter.a)
        adapter.b.normal_()
        theirs[0].lora_B["default"].weight.copy_(adapter.b)
        difference = model(inputs) - theirs(inputs)
        # The one weight that is held at zero is all that differs.
        lost = adapter.scale * (adapter.b @ adapter.a)[0, 0]
        first = functional.linear(inputs, model[0].weight + adapter.scale * adapter.b @ adapter.a, model[0].bias)
        masked = first.clone()
        masked[:, 0] -= lost * inputs[:, 0]
        tail = lambda hidden: model[2](torch.tanh(hidden))  # noqa: E731
        torch.testing.assert_close(difference, tail(masked) - tail(first), rtol=1e-4, atol=1e-6)


def test_targets_and_refusals():
    inputs = torch.randn(20, 8, dtype=torch.double)
    pruner = pruned(small(), inputs=inputs)
    assert len(pruner.add_adapters(rank=1, targets=["2"], trained=["0"])) == 2
    assert [one.requires_grad for one in pruner.model.parameters()] == [True, True, False, False]
    for words, told in (
        ({"targets": ["q_proj"]}, "matches no pruned linear layer"),
        ({"rank": 9}, "is more than 4"),
    ):
        with pytest.raises(ValueError, match=told):
            pruned(small(), inputs=inputs).add_adapters(**words)
    with pytest.raises(ValueError, match="method=gmp moves them"):
        pdp.Pruner(small(), "gmp", sparsity=0.5, epochs=2).add_adapters()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, r"has adapters at 2 layers \(0, 2\), this pruner at 0 \(none\): call add_adapters as before"),
        ({"rank": 2, "targets": ["0"]}, r"has adapters at 2 layers \(0, 2\), this pruner at 1 \(0\)"),
        ({"rank": 2, "alpha": 4}, "an adapter of rank 2 and alpha 6 at 0, this pruner one of rank 2 and alpha 4"),
        ({"rank": 3, "alpha": 9}, "an adapter of rank 2 and alpha 6 at 0, this pruner one of rank 3 and alpha 9"),
    ],
)
def test_a_state_of_other_adapters_is_refused(given, words):
    inputs = torch.randn(20, 8, dtype=torch.double)
    pruner, other = pruned(small(), inputs=inputs), pruned(small(), inputs=inputs)
    pruner.add_adapters(rank=2, alpha=6)
    if given is not None:
        other.add_adapters(**given)
        with pytest.raises(pdp.errors.Refusal, match="has adapters already: give add_adapters all targets at once"):
            other.add_adapters(rank=2, alpha=6)
    with pytest.raises(pdp.errors.Refusal, match=words):
        other.load_state_dict(pruner.state_dict())


def test_a_state_without_adapters_is_refused_unless_they_are_merged():
    inputs = torch.randn(20, 8, dtype=torch.double)
    model = small()
    pruner, other = pruned(model, inputs=inputs), pruned(copy.deepcopy(small()), inputs=inputs)
    other.add_adapters(rank=2)
    with pytest.raises(pdp.errors.Refusal, match=r"has adapters at 0 layers \(none\), this pruner at 2"):
        other.load_state_dict(pruner.state_dict())
    pruner.add_adapters(rank=2)
    pruner.finalize()
    other.model.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    assert torch.equal(other.model(inputs), model(inputs)) and not other.adapter_parameters
