"""Channels in training: which layers are coupled, what the mask covers, its formula, resuming, copies, refusals."""

import copy
import io

import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from channel_models import IMAGE, NOW, Residual, make, train
from small_models import batch
from torch import nn

from pdp import Pruner
from pdp.errors import Refusal
from pdp.patterns.find import find_couplings


class Pooled(nn.Module):
    """Two convolutions before a pooling to 1 x 1, whose result PyTorch gives the strides of channels last."""

    def __init__(self, pool):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.head, self.pool = nn.BatchNorm2d(6), nn.Linear(6, 4), pool

    def forward(self, images):
        return self.head(self.pool(self.norm(self.last(self.stem(images).relu())).relu()).flatten(1))


def strided(values):
    """A pooling whose result is given strides by the model, each element where it is."""
    pooled = values.mean((2, 3), keepdim=True).contiguous()
    return pooled.as_strided(pooled.shape, (pooled.shape[1], 1, 1, 1))


def crossed(values):
    """The same with images and channels exchanged."""
    pooled = values[:, :, :2].mean((2, 3), keepdim=True).expand(6, 6, 1, 1).contiguous()
    return pooled.as_strided(pooled.shape, (1, 6, 1, 1))


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(8)])
@pytest.mark.parametrize("training", [True, False])
def test_images_in_channels_last_have_the_same_units(pool, training):
    images = torch.randn(2, 3, 8, 8)
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = Pooled(pool).train(training).to(memory_format=order)
        couplings = find_couplings(model, images.to(memory_format=order))
        found.append({one.name: (one.refused, [(part.name, part.units) for part in one.inputs]) for one in couplings})
    assert found[0] == found[1]
    assert found[0]["last"] == (None, [("head", list(range(6)))])


def test_strides_that_a_model_gives_are_followed_only_where_each_element_stays():
    last = {one.name: one for one in find_couplings(Pooled(strided), torch.randn(2, 3, 8, 8))}["last"]
    assert last.refused is None and [part.name for part in last.inputs] == ["head"]
    last = {one.name: one for one in find_couplings(Pooled(crossed), torch.randn(1, 3, 8, 8))}["last"]
    assert last.refused is not None and "as_strided" in last.refused


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


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"example_input": None}, "example_input"),
        ({"pattern_options": {"saliency": "max"}}, '"saliency": "max"'),
        ({"pattern_options": {"target": "watts"}}, '"target": "watts"'),
        ({"sparsity": 0.99, "pattern_options": {"target": "macs"}}, "cannot be reached"),
        ({"sparsity": 0.99}, "empty"),
        ({"exclude": ["one", "last"]}, "no layer to prune"),
    ],
)
def test_what_does_not_fit_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        make(**values)


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
            # At a small one the rounding of two ways to compute a mask, equally exact, shows in the weights.
            **({"temperature": 1e-2} if pattern == "2:4" else {}),
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
