"""The hooks that replace weights, in every situation in which they must work."""

import copy

import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import load_file, save_model
from small_models import batch, small_net, train_epoch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdp import Pruner
from pdp.masks.soft import soft_prune

NOW = {"warmup": "0ep", "ramp": "1ep"}


def pruned_net(model=None, **values):
    model = small_net() if model is None else model
    values = {"sparsity": 0.7, "epochs": 4, "schedule": NOW, "temperature": 1e-3} | values
    pruner = Pruner(model, **values)
    pruner.start_epoch(0)
    return model, pruner


def effective(layer):
    return soft_prune(layer.weight, layer.state["cut"], 1e-3)


def test_gradients_are_those_of_the_masked_weight():
    model, pruner = pruned_net()
    images, labels = batch()
    nn.functional.cross_entropy(model(images), labels).backward()
    twin = copy.deepcopy(model)
    stand_ins = {layer.parameter: effective(layer) for layer in pruner.layers}
    for layer in pruner.layers:
        layer.active = False
    loss = nn.functional.cross_entropy(torch.func.functional_call(twin, stand_ins, (images,)), labels)
    gradients = torch.autograd.grad(loss, [layer.weight for layer in pruner.layers])
    for layer, gradient in zip(pruner.layers, gradients, strict=True):
        assert torch.allclose(layer.weight.grad, gradient, atol=1e-6)


def test_state_dict_parameters_and_attributes_stay_the_dense_models():
    plain = small_net()
    keys, names = list(plain.state_dict()), [name for name, _ in plain.named_parameters()]
    model, _ = pruned_net(plain)
    model(batch()[0])
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == names
    assert all("weight" not in module.__dict__ for module in model.modules())
    assert isinstance(model[0].weight, nn.Parameter)


def test_an_exception_in_forward_leaves_the_stored_weight_in_place():
    model, pruner = pruned_net()
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 5, 8, 8))
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[0].weight is pruner.layers[0].weight


def test_a_deep_copy_prunes_with_its_own_weights_and_the_live_cut():
    model, pruner = pruned_net()
    images, _ = batch()
    twin = copy.deepcopy(model)
    model.eval(), twin.eval()
    assert torch.equal(twin(images), model(images))
    with torch.no_grad():
        twin[0].weight.zero_()
    assert not torch.equal(twin(images), model(images))
    for layer in pruner.layers:
        layer.state["cut"].fill_(float("inf"))
    assert torch.equal(model(images)[0], model(images)[1]) and torch.equal(twin(images)[0], twin(images)[1])


def test_a_running_average_is_masked_too():
    model, pruner = pruned_net()
    average = ModelEmaV3(model, decay=0.5)
    train_epoch(model, pruner, torch.optim.SGD(model.parameters(), 0.1), 1)
    average.update(model)
    with torch.no_grad():
        expected = small_net()
        expected.load_state_dict(average.module.state_dict())
        for layer in pruner.layers:
            weight = expected.get_submodule(layer.name).weight
            weight.copy_(soft_prune(weight, layer.state["cut"], 1e-3))
        assert torch.allclose(average.module.eval()(batch()[0]), expected.eval()(batch()[0]), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_graph_breaks_and_without_a_new_compilation_each_step(backend):
    model, pruner = pruned_net()
    plain, other = pruned_net(twin_of(model))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizers = [torch.optim.SGD(one.parameters(), 0.05) for one in (model, plain)]
    for step in range(4):
        images, labels = batch(step)
        for forward, one, optimizer in ((compiled, pruner, optimizers[0]), (plain, other, optimizers[1])):
            nn.functional.cross_entropy(forward(images), labels).backward()
            optimizer.step()
            one.step()
            optimizer.zero_grad()
    assert counter.frame_count == 1
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def twin_of(model):
    twin = small_net()
    twin.load_state_dict(model.state_dict())
    return twin


def test_where_no_deletion_can_be_compiled_the_stored_weight_hides_itself(monkeypatch):
    """The way of PyTorch 2.11."""
    monkeypatch.setattr("pdp.pruner.compiling.DELETIONS_COMPILE", False)
    torch._dynamo.reset()
    model, pruner = pruned_net()
    plain, other = pruned_net(twin_of(model))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for step in range(3):
        images, labels = batch(step)
        for forward, one, own in ((compiled, model, pruner), (plain, plain, other)):
            nn.functional.cross_entropy(forward(images), labels).backward()
            torch.optim.SGD(one.parameters(), 0.05).step()
            own.step()
            one.zero_grad()
    conv = model[0]
    assert conv.__dict__["weight"] is conv._parameters["weight"] and list(model.state_dict()) == list(
        plain.state_dict()
    )
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    model.to(torch.float64), plain.to(torch.float64)
    images = batch()[0].double()
    assert torch.allclose(compiled(images), plain(images), atol=1e-6)
    pruner.finalize(), other.finalize()
    assert not any("weight" in module.__dict__ for module in model.modules())
    assert torch.allclose(model(images), plain(images), atol=1e-6)


@torch._dynamo.config.patch(skip_nnmodule_hook_guards=True)  # as it is before the first pruner
def test_the_graph_of_a_dense_model_does_not_stand_in_for_a_pruned_one():
    """In one process, as in a sweep; the dense one is compiled before there is any pruner."""
    torch._dynamo.reset()
    images = batch()[0]
    dense = small_net()
    compiled_dense = torch.compile(dense, backend="eager")
    for _ in range(2):
        before = compiled_dense(images)
    model, pruner = pruned_net(twin_of(dense))
    compiled = torch.compile(model, backend="eager")
    masked = compiled(images)
    assert torch.allclose(masked, model(images), atol=1e-6) and not torch.allclose(masked, before, atol=1e-3)
    # And the other way about, with both at hand, and when the hooks have gone.
    assert torch.equal(compiled_dense(images), before) and torch.equal(compiled(images), masked)
    pruner.finalize()
    assert torch.allclose(compiled(images), model(images), atol=1e-6)


def test_autocast_masks_in_float32():
    model, pruner = pruned_net()
    seen = []
    handle = model[0].register_forward_pre_hook(lambda module, _: seen.append(module.weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch()[0])
    handle.remove()
    assert output.dtype == torch.bfloat16
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], effective(pruner.layers[0]), rtol=2e-5, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant):
    model, pruner = pruned_net()
    model.eval()  # BatchNorm would move its statistics twice
    images, labels = batch()
    images.requires_grad_()
    nn.functional.cross_entropy(model(images), labels).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    output = checkpoint(lambda x: model(x), images, use_reentrant=reentrant)
    nn.functional.cross_entropy(output, labels).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)


def test_the_hard_model_loads_into_plain_pytorch(tmp_path):
    model, pruner = pruned_net()
    pruner.finalize()
    save_model(model, str(tmp_path / "model.safetensors"))
    plain = small_net()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(plain.eval()(batch()[0]), model.eval()(batch()[0]))
    assert not model[0]._forward_pre_hooks and not model[0]._forward_hooks


def test_channels_last_prunes_as_much():
    model, pruner = pruned_net(small_net().to(memory_format=torch.channels_last))
    plain, other = pruned_net(twin_of(model).to(memory_format=torch.contiguous_format))
    images, _ = batch()
    model.eval(), plain.eval()
    assert torch.allclose(model(images.contiguous(memory_format=torch.channels_last)), plain(images), atol=1e-6)
    pruner.finalize(), other.finalize()
    for one, two in zip(pruner.layers, other.layers, strict=True):
        assert torch.equal(one.weight == 0, two.weight == 0)
        assert int((one.weight == 0).sum()) == one.pruned


def test_tied_weights_are_one_layer_masked_at_both_places():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.two.weight = self.one.weight
            self.table = nn.Embedding(5, 6)
            self.head = nn.Linear(6, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.two(self.one(self.table(x))))

    model, pruner = pruned_net(Tied())
    assert [layer.name for layer in pruner.layers] == ["one"]
    masked = effective(pruner.layers[0])
    tokens = torch.tensor([1, 2])
    expected = model.table(tokens) @ masked.T @ masked.T @ model.table.weight.T
    assert torch.allclose(model(tokens), expected, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_is_masked_though_it_reads_weights_outside_their_forward(training):
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model, pruner = pruned_net(model)
    assert [layer.name for layer in pruner.layers] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    ]
    plain = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in pruner.layers:
            plain.get_parameter(layer.parameter).copy_(effective(layer))
    tokens = torch.randn(3, 5, 16)
    model.train(training), plain.train(training)
    with torch.no_grad():
        assert torch.allclose(model(tokens), plain(tokens), atol=1e-5)
    pruner.finalize()
    assert int((model.self_attn.in_proj_weight == 0).sum()) == pruner.layers[0].pruned
