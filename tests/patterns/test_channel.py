"""Channels: which layers are coupled, what the mask covers, exact zeros, budgets over channels and multiply-adds."""

import copy
import io
import math

import pytest
import timm
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from small_models import batch
from torch import nn
from torchvision.models import resnet18

from pdp import Pruner, count_macs
from pdp.errors import Refusal
from pdp.export.compare import difference
from pdp.export.slim import slim
from pdp.patterns.find import find_couplings

NOW = {"warmup": "0ep", "ramp": "1ep"}
IMAGE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """A stem, a sum of two branches, a depthwise convolution, a classifier; biases where there may be some."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.two, self.norm2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.deep, self.norm3 = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.last, self.norm4 = nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10 * 4, 4)

    def features(self, x):
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm1(self.one(x)) + self.norm2(self.two(x))).relu()
        x = self.norm3(self.deep(x)).relu()
        return x, self.norm4(self.last(x)).relu()

    def forward(self, x):
        middle, last = self.features(x)
        return self.head(nn.functional.adaptive_avg_pool2d(last, 2).flatten(1))


def make(model=None, method="pdp", **values):
    model = Residual() if model is None else model
    values = {"sparsity": 0.5, "epochs": 4, "schedule": NOW, "example_input": IMAGE, "temperature": 1e-3} | values
    if method != "pdp":
        values.pop("temperature")
    return model, Pruner(model, method, "channel", **values)


def train(model, pruner, epochs=range(3), steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for epoch in epochs:
        pruner.start_epoch(epoch)
        for step in range(steps):
            images, labels = batch(step)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()


def test_the_couplings_are_the_networks_own():
    found = {one.name: one for one in find_couplings(Residual(), IMAGE)}
    assert set(found) == {"stem", "one", "last", "head"}
    middle = found["one"]
    assert [part.name for part in middle.outputs] == ["one", "two", "deep"]
    assert sorted(part.name for part in middle.norms) == ["norm1", "norm2", "norm3"]
    assert [part.name for part in middle.inputs] == ["last"]
    flattened = found["last"].inputs[0]
    assert flattened.name == "head" and flattened.units == [index // 4 for index in range(40)]
    assert found["head"].refused == "its channels are the model's outputs"


def test_channels_have_a_relative_temperature_unless_one_is_chosen():
    _, pruner = make(temperature=1e-4)
    pruner.start_epoch(0)
    for layer in pruner.layers:
        assert float(layer.state["temperature"]) == pytest.approx(0.002 * float(layer.state["cut"]) ** 2, rel=1e-5)
    for values in ({"temperature": 1e-3}, {"temperature": 1e-4, "temperature_mode": "absolute"}):
        _, pruner = make(**values)
        pruner.start_epoch(0)
        assert all("temperature" not in layer.state for layer in pruner.layers)
        tau, layer = values["temperature"], pruner.layers[0]
        expected = torch.sigmoid((pruner.method.saliency(layer) ** 2 - layer.state["cut"] ** 2) / tau)
        assert torch.allclose(layer.state["mask"], expected, atol=1e-6)


def test_layers_that_keep_their_outputs_are_listed():
    _, pruner = make()
    assert [(layer.name, layer.units) for layer in pruner.layers] == [("one", 12), ("last", 10)]
    assert pruner.skipped == {"stem": "the stem", "head": "its channels are the model's outputs"}
    _, pruner = make(pattern_options={"prune_stem": True})
    assert [layer.name for layer in pruner.layers] == ["stem", "one", "last"]
    _, pruner = make(exclude=["two"])
    assert [layer.name for layer in pruner.layers] == ["last"]
    assert "coupled with two" in pruner.skipped["one"]


@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_the_saliency_is_over_all_filters_of_the_channel(kind):
    model, pruner = make(pattern_options={"saliency": kind})
    layer = pruner.layers[0]
    filters = torch.cat([one.weight.detach().double().flatten(1) for one in (model.one, model.two, model.deep)], 1)
    square = filters.square().sum(1) if kind == "l2" else filters.square().mean(1)
    assert torch.allclose(pruner.method.saliency(layer).double(), square.sqrt(), rtol=1e-5)


def reference_forward(model, masks, images):
    """The network in float64 with every filter, bias and norm of a channel multiplied by its mask."""
    twin = copy.deepcopy(model).double()
    twin._forward_pre_hooks.clear()
    parameters = {name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()}
    owners = {"one": ("one", "norm1", "two", "norm2", "deep", "norm3"), "last": ("last", "norm4")}
    scaled = dict(parameters)
    for layer, modules in owners.items():
        mask = masks[layer](parameters)
        for module in modules:
            for key in (f"{module}.weight", f"{module}.bias"):
                if key in parameters:
                    scaled[key] = parameters[key] * mask.reshape(-1, *[1] * (parameters[key].dim() - 1))
    plain = Residual().double()
    plain.load_state_dict(twin.state_dict())
    return torch.func.functional_call(plain, scaled, (images.double(),)), parameters


@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_outputs_and_gradients_are_those_of_the_formula_in_float64(mode):
    model, pruner = make(temperature=1e-2, temperature_mode=mode, kappa=0.3)
    train(model, pruner, range(1))
    cuts = {layer.name: float(layer.state["cut"]) for layer in pruner.layers}

    def mask_of(name, filters):
        def mask(parameters):
            square = torch.cat([parameters[f"{one}.weight"].flatten(1) for one in filters], 1).square().mean(1)
            tau = 1e-2 if mode == "absolute" else 0.3 * cuts[name] ** 2
            return torch.sigmoid((square - cuts[name] ** 2) / tau)

        return mask

    masks = {"one": mask_of("one", ("one", "two", "deep")), "last": mask_of("last", ("last",))}
    images, labels = batch(7)
    expected, parameters = reference_forward(model, masks, images)
    nn.functional.cross_entropy(expected, labels).backward()
    model.zero_grad()
    outputs = model(images)
    nn.functional.cross_entropy(outputs, labels).backward()
    assert torch.allclose(outputs.double(), expected, atol=1e-4)
    for name, parameter in model.named_parameters():
        scale = float(parameters[name].grad.abs().max()) + 1e-4
        assert torch.allclose(parameter.grad.double(), parameters[name].grad, atol=2e-3 * scale), name


def test_the_task_sees_the_mask_behind_the_norm():
    """In training a scaled filter before a BatchNorm changes nothing; the mask as a whole does."""
    model, pruner = make(temperature=1e-2)
    pruner.start_epoch(0)
    images, labels = batch(1)
    layer = pruner.layers[1]
    outputs = []
    for factor in (1.0, 0.5):
        layer.state["mask"].mul_(factor)
        outputs.append(model(images).detach())
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-2
    plain = Residual()
    plain.load_state_dict(model.state_dict())
    before = plain(images).detach()
    with torch.no_grad():
        plain.last.weight.mul_(0.5)
        plain.last.bias.mul_(0.5)
    assert (plain(images) - before).abs().max().item() < 1e-3
    nn.functional.cross_entropy(model(images), labels).backward()
    # A filter's mask alone would give a gradient orthogonal to the filter: scaling it changes nothing.
    filters, gradient = model.last.weight.detach().flatten(1), model.last.weight.grad.flatten(1)
    biases = model.last.bias.detach() * model.last.bias.grad
    assert float(((filters * gradient).sum(1) + biases).abs().max()) > 1e-3


@pytest.mark.parametrize("method", ["pdp", "gmp"])
def test_a_pruned_channel_is_exactly_zero_and_the_share_is_exact(method):
    model, pruner = make(method=method, sparsity=0.45)
    train(model, pruner)
    assert sum(layer.pruned for layer in pruner.layers) == math.floor(0.45 * 22 + 0.5)
    model.eval()
    images, _ = batch(3)
    gone = {layer.name: ~pruner.method.keep(layer) for layer in pruner.layers}
    with pruner.hard(), torch.no_grad():
        middle, last = model.features(images)
        hard = model(images)
    pruner.finalize()
    for features, name in ((middle, "one"), (last, "last")):
        assert int(gone[name].sum()) > 0
        assert torch.count_nonzero(features[:, gone[name]]) == 0
        assert bool((features[:, ~gone[name]].abs().amax((0, 2, 3)) > 0).any())
    assert torch.allclose(model(images), hard, atol=1e-6)


def test_counts_of_the_hard_model_are_those_of_the_slim_one():
    model, pruner = make()
    train(model, pruner)
    pruner.finalize()
    frame = count_macs(model, IMAGE)
    slimmed = slim(model, IMAGE).model
    smaller = count_macs(slimmed, IMAGE)
    assert frame.sparse_macs.tolist() == smaller.macs.tolist()
    assert frame.nonzero.tolist() == smaller.params.tolist()


def test_slim_equals_masked_and_trains_on():
    model, pruner = make(sparsity=0.5)
    train(model, pruner)
    pruner.finalize()
    slimmed = slim(model, IMAGE)
    assert difference(model, slimmed.model, batch(5)[0]) < 1e-5
    assert {name: count for name, (count, _) in slimmed.removed.items()} == {
        layer.name: layer.pruned for layer in pruner.layers if layer.pruned
    }
    optimizer = torch.optim.SGD(slimmed.model.parameters(), 0.05)
    before = nn.functional.cross_entropy(slimmed.model.train()(batch(5)[0]), batch(5)[1])
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(slimmed.model(batch(5)[0]), batch(5)[1])
        loss.backward()
        optimizer.step()
    assert loss.item() < before.item()


def test_a_saved_pruner_goes_on_bit_for_bit():
    whole, pruner = make()
    twin, other = make(copy.deepcopy(Residual()))
    twin.load_state_dict(whole.state_dict())
    train(whole, pruner, range(2))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "pruner": pruner.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin.load_state_dict(state["model"])
    other.load_state_dict(state["pruner"])
    images, _ = batch(9)
    whole.eval(), twin.eval()
    assert torch.equal(whole(images), twin(images))
    whole.train(), twin.train()
    train(whole, pruner, range(2, 4))
    train(twin, other, range(2, 4))
    for one, two in zip(whole.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_finding_couplings_changes_nothing():
    model = Residual()
    model.norm3.eval()
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    find_couplings(model, IMAGE)
    assert model.training and not model.norm3.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_the_mac_target_is_met_by_the_slim_model(allocation):
    torch.manual_seed(2)
    model = resnet18(num_classes=10)
    images = torch.zeros(1, 3, 64, 64)
    dense = count_macs(model, images).macs.sum()
    pruner = Pruner(
        model,
        pattern="channel",
        sparsity=0.5,
        epochs=1,
        schedule=NOW,
        example_input=images,
        pattern_options={"target": "macs"},
        allocation=allocation,
    )
    pruner.start_epoch(0)
    pruner.finalize()
    assert pruner.pattern.target_unit == "mac"
    left = count_macs(slim(model, images).model, images).macs.sum() / dense
    assert left == pytest.approx(0.5, rel=0.01)
    assert pruner.pattern.reached(pruner.layers) == pytest.approx(1 - left, abs=1e-12)


def test_grouped_convolutions_lose_the_same_channels_of_every_group():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 12, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1, groups=4),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    _, pruner = make(model)
    assert {layer.name: layer.units for layer in pruner.layers} == {"1": 3, "4": 6, "7": 5}
    train(model, pruner, range(2))
    pruner.finalize()
    slimmed = slim(model, IMAGE)
    assert slimmed.model[4].groups == 4 and slimmed.model[4].out_channels < 24
    assert difference(model, slimmed.model, batch(5)[0]) < 1e-5


def test_heads_and_hidden_units_of_a_transformer():
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=4, num_classes=4
    )
    images = torch.randn(2, 3, 32, 32)
    pruner = Pruner(
        model, pattern="channel", sparsity=0.4, epochs=1, schedule=NOW, example_input=images[:1], allocation="uniform"
    )
    assert {layer.name: layer.units for layer in pruner.layers} == {
        "blocks.0.attn.qkv": 4,
        "blocks.0.mlp.fc1": 96,
        "blocks.1.attn.qkv": 4,
        "blocks.1.mlp.fc1": 96,
    }
    pruner.start_epoch(0)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1])).backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters())
    pruner.finalize()
    slimmed = slim(model, images[:1])
    assert slimmed.model.blocks[0].attn.num_heads == 2
    assert difference(model, slimmed.model, images) < 1e-5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"example_input": None}, "example_input"),
        ({"pattern_options": {"saliency": "max"}}, '"saliency": max'),
        ({"pattern_options": {"target": "watts"}}, '"target": watts'),
        ({"sparsity": 0.99, "pattern_options": {"target": "macs"}}, "cannot be reached"),
        ({"sparsity": 0.99}, "empty"),
        ({"exclude": ["one", "last"]}, "no layer to prune"),
    ],
)
def test_what_does_not_fit_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        make(**values)


def test_a_model_without_zero_channels_cannot_be_slimmed():
    with pytest.raises(Refusal, match="no channel"):
        slim(Residual(), IMAGE)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["channel", "2:4"])
def test_compiled_without_graph_breaks(pattern):
    models = [Residual(), Residual()]
    models[1].load_state_dict(models[0].state_dict())
    pruners = [
        Pruner(
            one,
            pattern=pattern,
            sparsity=0.5,
            epochs=1,
            schedule=NOW,
            example_input=IMAGE,
            exclude=["deep"] if pattern == "2:4" else (),
        )
        for one in models
    ]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    forwards = [torch.compile(models[0], backend=counter, fullgraph=True), models[1]]
    optimizers = [torch.optim.SGD(one.parameters(), 0.05) for one in models]
    for pruner in pruners:
        pruner.start_epoch(0)
    for step in range(3):
        images, labels = batch(step)
        for forward, pruner, optimizer in zip(forwards, pruners, optimizers, strict=True):
            nn.functional.cross_entropy(forward(images), labels).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    assert counter.frame_count == 1
    for mine, theirs in zip(*(one.parameters() for one in models), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_a_deep_copy_is_masked_and_checkpointing_gives_the_same_gradients():
    model, pruner = make(temperature=1e-2)
    train(model, pruner, range(1))
    twin = copy.deepcopy(model)
    model.eval(), twin.eval()
    images, labels = batch(4)
    assert torch.equal(model(images), twin(images))
    nn.functional.cross_entropy(model(images), labels).backward()
    expected = {name: one.grad.clone() for name, one in model.named_parameters()}
    model.zero_grad()
    outputs = torch.utils.checkpoint.checkpoint(model, images, use_reentrant=False)
    nn.functional.cross_entropy(outputs, labels).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-7), name


class Branches(nn.Module):
    """Two branches side by side, summed with a third; a sigmoid; a reader of all."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.whole = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        both = torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)
        return self.head(torch.sigmoid(self.norm(both))).mean((2, 3))


def test_a_branch_that_loses_all_its_channels_keeps_one_zero():
    model = Branches()
    with torch.no_grad():
        for part in (model.left, model.whole, model.norm):
            part.weight[:4], part.bias[:4] = 0, 0
        model.head.weight[:, :4] = 0
    slimmed = slim(model.eval(), IMAGE)
    assert slimmed.removed == {"left": (3, 8)} and slimmed.model.left.out_channels == 1
    assert difference(model, slimmed.model, batch(5)[0]) < 1e-6


def test_readers_of_what_is_not_zero_are_masked_as_the_formula_says():
    """sigmoid(0) is 1/2: the columns that read it are masked with the same mask, in training too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Sigmoid(), nn.Linear(10, 9), nn.Sigmoid(), nn.Linear(9, 4))
    inputs = torch.randn(5, 6)
    pruner = Pruner(
        model, pattern="channel", sparsity=0.5, epochs=2, schedule=NOW, temperature=0.05, example_input=inputs[:1]
    )
    pruner.start_epoch(0)
    weights = {name: one.detach().double().requires_grad_() for name, one in model.named_parameters()}
    masks = []
    for layer in pruner.layers:
        square = weights[layer.parameter].square().mean(1)
        masks.append(torch.sigmoid((square - float(layer.state["cut"]) ** 2) / 0.05))
    hidden = (inputs.double() @ (weights["0.weight"] * masks[0][:, None]).T + weights["0.bias"] * masks[0]).sigmoid()
    middle = weights["2.weight"] * masks[1][:, None] * masks[0]
    hidden = (hidden @ middle.T + weights["2.bias"] * masks[1]).sigmoid()
    expected = hidden @ (weights["4.weight"] * masks[1]).T + weights["4.bias"]
    expected.square().sum().backward()
    output = model(inputs)
    output.square().sum().backward()
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    for name, one in model.named_parameters():
        torch.testing.assert_close(one.grad.double(), weights[name].grad, rtol=1e-3, atol=1e-4)
