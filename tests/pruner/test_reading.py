"""Weights that a parent module reads: there the mask applies as in the module's own forward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reading_net import NOW, ROWS, TAU, Net, assert_masked, expected, pruned
from torch import nn

from pdp import Pruner, count_macs
from pdp.errors import Refusal, Stopped
from pdp.masks.soft import soft_prune
from pdp.pruner import compiling


@pytest.mark.parametrize("kind", ["called", "module checkpointed", "method checkpointed", "reentrant"])
def test_a_weight_that_its_parent_reads_is_masked_forward_and_backward(kind):
    model, pruner = pruned(kind)
    outputs = model(ROWS.clone().requires_grad_())
    outputs.square().mean().backward()
    assert_masked(pruner, outputs, [layer.weight.grad for layer in pruner.layers])
    assert isinstance(model.attention.qkv.weight, nn.Parameter)
    assert list(model.state_dict()) == list(Net().state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("deletions", [True, False])  # the way of PyTorch 2.14, and that of earlier ones
@pytest.mark.parametrize("part", ["whole", "a part"])
def test_compiled_without_a_graph_break(part, deletions, monkeypatch):
    monkeypatch.setattr("pdp.pruner.compiling.DELETIONS_COMPILE", deletions and compiling.DELETIONS_COMPILE)
    torch._dynamo.reset()
    model, pruner = pruned()
    forward = model
    if part == "whole":
        forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    else:
        model.attention.compile(backend="aot_eager", fullgraph=True)
    outputs = forward(ROWS)
    outputs.square().mean().backward()
    assert_masked(pruner, outputs, [layer.weight.grad for layer in pruner.layers])
    with torch.no_grad(), pruner.hard():
        hard = forward(ROWS)
    pruner.step()
    pruner.finalize()
    assert torch.allclose(model(ROWS), hard, atol=1e-6)
    assert not any(key.startswith("weight") for module in model.modules() for key in module.__dict__)


def test_a_part_called_alone_and_a_copy_are_masked():
    model, pruner = pruned()
    one, two = (soft_prune(layer.weight, layer.state["cut"], TAU) for layer in pruner.layers[:2])
    right = F.linear(F.linear(ROWS, one).relu(), two, model.attention.proj.bias)
    assert torch.allclose(model.attention(ROWS), right, atol=1e-6)
    twin = copy.deepcopy(model)
    assert torch.allclose(twin.attention(ROWS), right, atol=1e-6)
    with torch.no_grad():
        twin.attention.qkv.weight.zero_()
    assert torch.allclose(model.attention(ROWS), right, atol=1e-6)
    assert torch.allclose(twin.attention(ROWS), F.linear(torch.zeros(6, 16), two, twin.attention.proj.bias))


def test_a_module_that_runs_in_itself_is_masked_to_its_end():
    class Again(nn.Linear):
        def forward(self, x, deep=True):
            inner = self(x, False) if deep else x
            return F.linear(inner, self.weight, self.bias)

    model = Again(16, 16)
    pruner = Pruner(nn.Sequential(model), sparsity=0.6, epochs=4, schedule=NOW, temperature=TAU)
    pruner.start_epoch(0)
    masked = soft_prune(model.weight, pruner.layers[0].state["cut"], TAU)
    right = F.linear(F.linear(ROWS, masked, model.bias), masked, model.bias)
    assert torch.allclose(pruner.model(ROWS), right, atol=1e-6)


@pytest.mark.parametrize("how", ["in place", "data", "data in place"])
@pytest.mark.parametrize("recording", [True, False])
def test_what_a_model_writes_to_a_childs_weight_is_stored(how, recording):
    def halve(model):
        weight = model.attention.qkv.weight
        if how == "data":
            weight.data = model.attention.qkv._parameters["weight"].detach() * 0.5
        elif how == "data in place":
            weight.data.mul_(0.5)
        else:
            with torch.no_grad():
                weight.mul_(0.5)

    model, pruner = pruned()
    before = pruner.layers[0].weight.detach().clone()
    model.between = halve
    with torch.set_grad_enabled(recording):
        outputs = model(ROWS)
    model.between = lambda model: None
    assert torch.equal(pruner.layers[0].weight, before * 0.5)
    assert torch.allclose(outputs, expected(pruner)[0], atol=1e-5)


def test_multiply_adds_are_counted_where_they_happen_with_and_without_masks():
    model, pruner = pruned()
    frame = count_macs(model, ROWS).set_index("name").macs
    assert frame.to_dict() == {"attention.qkv": 1536, "attention.proj": 1536, "encoder": 1536, "head": 384}
    pruner.finalize()
    assert frame.equals(count_macs(model, ROWS).set_index("name").macs)


class Hidden(nn.Module):
    """Reads a weight past its module."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
        self.kept = [self.first.weight]

    def forward(self, x):
        return self.last(F.linear(x, self.kept[0]))


@pytest.mark.parametrize("call", ["after_backward", "step"])
def test_a_gradient_of_a_weight_that_was_never_read_masked_names_the_layer(call):
    pruner = Pruner(Hidden(), sparsity=0.5, epochs=4, schedule=NOW)
    pruner.start_epoch(0)
    pruner.model(ROWS).sum().backward()
    with pytest.raises(Stopped, match=r"first\.weight got a gradient.*exclude=\[\"first\"\]"):
        getattr(pruner, call)()


def test_a_layer_that_a_step_leaves_out_keeps_an_old_gradient_without_an_error():
    model, pruner = pruned()
    model(ROWS).sum().backward()
    pruner.step()
    model.head(ROWS).sum().backward()  # nothing was zeroed, and most layers were not read
    pruner.step()
    model.zero_grad(set_to_none=False)
    model.head(ROWS).sum().backward()
    pruner.step()


def test_a_pruner_copied_with_its_model_is_the_copys():
    model, pruner = pruned()
    for pair in (copy.deepcopy((model, pruner)), copy.deepcopy((pruner, model))[::-1]):
        other, its = pair
        assert its.model is other and its.layers[0].weight is other.attention.qkv.weight
        before = model(ROWS)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(5)
        its.step()
        assert torch.equal(model(ROWS), before)
        assert not torch.equal(its.layers[0].state["cut"], pruner.layers[0].state["cut"])
        with its.hard(), torch.no_grad():
            hard = other(ROWS)
        its.finalize()
        assert torch.allclose(other(ROWS), hard, atol=1e-6)
        assert torch.equal(model(ROWS), before)


def test_a_second_pruner_is_refused_until_the_first_is_done():
    model, pruner = pruned()
    for second in (model, copy.deepcopy(model)):
        with pytest.raises(Refusal, match="has a pruner already"):
            Pruner(second, pattern="2:4", epochs=4, schedule=NOW)
    pruner.remove()
    assert type(model.attention.qkv._parameters) is dict and not model._forward_pre_hooks
    Pruner(model, pattern="2:4", epochs=4, schedule=NOW)


def replaced(model):
    model.head = nn.Linear(16, 4)


def tied(model):
    model.attention.proj.weight = model.attention.qkv.weight


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.head)


@pytest.mark.parametrize("change", [replaced, tied, parametrized])
@pytest.mark.parametrize("call", ["step", "finalize"])
def test_a_model_that_was_changed_since_is_refused_in_one_sentence(change, call):
    model, pruner = pruned()
    change(model)
    with pytest.raises(Refusal, match=r"head|attention\.proj"):
        getattr(pruner, call)()


def test_weights_assigned_anew_are_pruned_and_ties_that_broke_refused():
    model, pruner = pruned()
    model.load_state_dict({name: one.clone() for name, one in Net().state_dict().items()}, assign=True)
    pruner.finalize()
    assert all(int((one.weight == 0).sum()) == one.pruned for one in pruner.layers)
    both = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    both[1].weight = both[0].weight
    pruner = Pruner(both, sparsity=0.5, epochs=4, schedule=NOW)
    both.load_state_dict({name: one.clone() for name, one in both.state_dict().items()}, assign=True)
    with pytest.raises(Refusal, match="one weight of 2 modules"):
        pruner.start_epoch(0)


@pytest.mark.parametrize("call", ["start_epoch", "finalize"])
def test_a_weight_that_is_no_number_is_an_error(call):
    model, pruner = pruned()
    with torch.no_grad():
        model.encoder.weight[2, 3] = torch.nan
    with pytest.raises(Stopped, match=r"encoder\.weight holds 1 NaN of 128"):
        getattr(pruner, call)(*([1] if call == "start_epoch" else []))
    pruner.remove()
    with pytest.raises(Stopped, match=r"encoder\.weight holds 1 NaN"):
        Pruner(model, sparsity=0.5, epochs=4, schedule=NOW)


def multiplied(layer, x):
    return torch.nn.functional.linear(x, layer.weight)


class Told(nn.Module):
    """Runs a function that it was given, which reads weights outside of their modules."""

    def __init__(self, run):
        super().__init__()
        self.first, self.second, self.run = nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False), run

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    "run",
    [
        lambda own, x: x @ own.first.weight.T @ own.second.weight.T,
        lambda own, x: multiplied(own.second, multiplied(own.first, x)),
        lambda own, x: multiplied(own.second, x @ getattr(own, "fir" + "st").weight.T),
    ],
)
def test_compiled_before_any_other_forward_and_only_measured(run):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Told(run), torch.randn(3, 16)
    pruner = Pruner(model, sparsity=0.5, epochs=1, schedule="constant")
    pruner.start_epoch(0)
    forward = torch.compile(model, backend="eager")
    with torch.no_grad(), pruner.hard():
        compiled = forward(x)
    pruner.finalize()
    torch.testing.assert_close(compiled, model(x))
