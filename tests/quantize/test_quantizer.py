"""A quantized model in training: when it begins, what it computes with, what it leaves; by every method and pattern."""

import copy
import dataclasses

import pytest
import torch
from small_models import CASES, batch, case_net, case_pruner, case_step, small_net
from torch import nn
from torch.nn import functional

from pdp import Pruner
from pdp.errors import Refusal
from pdp.export.slim import slim
from pdp.quantize.frozen import Frozen
from pdp.quantize.points import find_activations, find_products, find_weights
from pdp.tasks.resnet20 import ResNet20

INT8 = {"quantize": "int8", "quantize_options": {"start": "0.5"}}


def trained(method="pdp", pattern="random", epochs=4, norm=True, **values):
    torch.manual_seed(3)
    model = case_net(norm)
    pruner = case_pruner(model, method, pattern, epochs=epochs, **values)
    if pruner.method.calibrates:
        pruner.calibrate([batch(50, dtype=torch.float64)[0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner.attach(optimizer)
    for epoch in range(epochs):
        pruner.start_epoch(epoch)
        for step in range(3):
            case_step(model, pruner, optimizer, *batch(100 * epoch + step, dtype=torch.float64))
    return model, pruner


def steps_of(frozen, name, weight):
    return weight.detach() / frozen.weights[name]


@pytest.mark.parametrize("quantize", ["int8", "int4w"])
@pytest.mark.parametrize(("method", "pattern"), CASES)
def test_every_method_ends_with_zeros_on_a_grid_that_fits(method, pattern, quantize):
    options = {"start": "0.5", "ranges": "learned" if len(method) % 2 else "observed"}
    model, pruner = trained(method, pattern, quantize=quantize, quantize_options=options)
    assert pruner.quantizer.active
    model.eval()
    images, _ = batch(9, dtype=torch.float64)
    with torch.no_grad(), pruner.hard():
        before = model(images)
        with pruner.unquantized():
            floats = model(images)
    pruner.finalize()
    bound = 127 if quantize == "int8" else 7
    hard = {name: value.clone() for name, value in model.state_dict().items()}
    # The biases of integer products are rounded too, which training leaves out.
    frozen = dataclasses.replace(pruner.frozen, biases={})
    with torch.no_grad(), frozen.applied(model):
        after = model(images)
        for name in pruner.frozen.weights:
            weight = model.get_parameter(name)
            steps = steps_of(pruner.frozen, name, weight)
            assert (weight[hard[name] == 0] == 0).all() and steps.abs().max() <= bound + 1e-4
            assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert all(torch.equal(value, hard[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        plain = model(images)
        assert method in ("str", "optg", "cs") or torch.allclose(plain, floats, rtol=1e-9, atol=1e-12)
    # Where channels went, what reads them is zeroed too, and its scales are those of what is left; some methods' shares
    # are settled last.
    if pattern != "channel" and method not in ("str", "optg", "cs"):
        assert torch.equal(before, after)
    assert not torch.equal(after, plain)


def test_the_forward_is_that_of_torch_s_own_operations_on_the_masked_weights():
    model, pruner = trained("pdp", norm=False, **INT8)
    quantizer, images = pruner.quantizer, batch(9, dtype=torch.float64)[0]
    assert [one.name for one in quantizer.activations] == [f"{place}.input" for place in ("0", "3", "6", "11")] + [
        "6.output"
    ]
    values = images
    with torch.no_grad():
        found = model(images)
        for number, module in enumerate(model):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                layer = next(layer for layer in pruner.layers if layer.name == str(number))
                masked = pruner.method.effective_weight(layer, layer.weight)
                scale = masked.flatten(1).abs().amax(1) / 127
                weight = torch.fake_quantize_per_channel_affine(
                    masked.float(), scale.float(), torch.zeros(len(scale), dtype=torch.int32), 0, -127, 127
                ).double()
                values = on_grid(quantizer, f"{number}.input", values)
                if isinstance(module, nn.Linear):
                    values = functional.linear(values, weight, module.bias)
                else:
                    values = functional.conv2d(values, weight, module.bias)
                if number == 6:
                    values = on_grid(quantizer, "6.output", values)
            else:
                values = module(values)
    assert torch.allclose(found, values, rtol=1e-4, atol=1e-4)


def on_grid(quantizer, name, values):
    number = [one.name for one in quantizer.activations].index(name)
    scale, zero = float(quantizer.ranges.scales[number]), int(quantizer.ranges.zero_points[number])
    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 255).double()


def test_ranges_are_means_of_what_the_steps_saw_and_stand_still_in_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    pruner = Pruner(model, "dense", epochs=2, steps_per_epoch=20, quantize="int8", quantize_options={"start": "15it"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    lows, highs, active = [], [], []
    for epoch in range(2):
        pruner.start_epoch(epoch)
        for step in range(20):
            inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(20 * epoch + step))
            if 20 * epoch + step >= 5:  # ten steps before
                lows.append(inputs.min()), highs.append(inputs.max())
            active.append(pruner.quantizer.active)
            model(inputs[:2]).sum().backward(), model(inputs[2:]).sum().backward()  # two micro-batches
            optimizer.step(), pruner.step(), optimizer.zero_grad()
            model.eval()
            model(1000 * inputs)
            model.train()
    assert active == [step >= 15 for step in range(40)]
    assert torch.allclose(pruner.quantizer.ranges.average[0, 0], torch.stack(lows).mean(), rtol=1e-5)
    assert torch.allclose(pruner.quantizer.ranges.average[1, 0], torch.stack(highs).mean(), rtol=1e-5)


def test_where_an_integer_convolution_s_result_is_read_by_floats_it_has_a_range():
    model = ResNet20()
    weights, left = find_weights(model, ["fc"])
    assert len(weights) == 21 and left == {"fc": "excluded by fc"}
    every = find_weights(model)[0]
    found = find_activations(model, every, find_products(model, every, torch.zeros(2, 3, 16, 16)))
    outputs = [one.name for one in found if one.outputs]
    # The first convolution and the second of each block end in a sum; the first of each block is read by the second.
    assert outputs[:3] == ["bn1.output", "layer1.0.bn2.output", "layer1.1.bn2.output"]
    assert len(outputs) == 1 + 9 + 2 and len(found) - len(outputs) == 22
    assert not [one for one in find_activations(model, weights) if one.outputs]


def test_what_is_quantized_is_what_multiplies():
    class Standardised(nn.Conv2d):
        def forward(self, images):
            return functional.conv2d(images, self.weight / self.weight.std() + 1)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight
            self.inner = nn.Linear(4, 4)

    weights, left = find_weights(nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 5, 1)))
    assert [one.parameter for one in weights] == ["1.weight"] and "changes its weight" in left["0"]
    weights, left = find_weights(Tied())
    assert [one.parameter for one in weights] == ["inner.weight"] and "tied to embedding" in left["head"]
    assert find_weights(nn.Sequential(nn.ConvTranspose2d(3, 4, 2)))[0][0].axis == 1
    attention, _ = find_weights(nn.MultiheadAttention(8, 2))
    assert [one.parameter for one in attention] == ["in_proj_weight", "out_proj.weight"]
    with pytest.raises(Refusal, match="quantize.exclude=nothing"):
        find_weights(small_net(), ["nothing"])
    with pytest.raises(Refusal, match="nothing of the model"):
        find_weights(nn.Sequential(nn.BatchNorm1d(3)))


def test_attention_s_projections_are_quantized_where_it_reads_them():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    pruner = Pruner(model, "pdp", sparsity=0.5, epochs=1, steps_per_epoch=4, schedule={"warmup": "0it", "ramp": "1it"},
                    quantize="int4w", quantize_options={"start": "0"})  # fmt: skip
    pruner.start_epoch(0)
    values = torch.randn(2, 5, 16)
    with pruner.hard():
        inside = model(values)
    pruner.finalize()
    with pruner.frozen.applied(model):
        assert torch.allclose(model(values), inside, atol=1e-6)
    assert not torch.allclose(model(values), inside, atol=1e-3)


@pytest.mark.parametrize("ranges", ["observed", "learned"])
def test_a_copy_and_an_average_compute_as_the_model_does(ranges):
    torch.manual_seed(0)
    model = case_net()
    pruner = case_pruner(
        model, "pdp", "random", epochs=4, quantize="int8", quantize_options={"start": "0.3", "ranges": ranges}
    )
    average = copy.deepcopy(model).eval()  # made before anything began, as a running average is
    twin = copy.deepcopy(pruner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner.attach(optimizer)
    for epoch in range(3):
        pruner.start_epoch(epoch)
        for step in range(3):
            case_step(model, pruner, optimizer, *batch(step, dtype=torch.float64))
    average.load_state_dict(model.state_dict())
    images = batch(9, dtype=torch.float64)[0]
    assert torch.equal(average(images), model.eval()(images))
    later = copy.deepcopy(pruner)
    assert torch.equal(later.model(images), model(images)) and later.quantizer is not pruner.quantizer
    assert not twin.quantizer.active and not torch.isfinite(twin.quantizer.ranges.average).any()


def test_a_learned_scale_moves_and_needs_the_optimizer():
    model, pruner = trained("pdp", quantize="int8", quantize_options={"start": "0.2", "ranges": "learned"})
    moved = [float(one.detach().abs().max()) for one in pruner.quantizer.extras.values()]
    assert all(0 < one < 0.5 for one in moved), moved
    pruner = case_pruner(case_net(), "pdp", "random", 4, quantize="int8", quantize_options={"ranges": "learned"})
    pruner.start_epoch(0)
    with pytest.raises(RuntimeError, match="attach"):
        pruner.step()


def test_a_slim_model_has_the_scales_of_the_masked_one():
    model, pruner = trained("pdp", "channel", **INT8)
    pruner.finalize()
    images = batch(9, dtype=torch.float64)[0]
    model.eval()
    with torch.no_grad(), pruner.frozen.applied(model):
        masked = model(images)
    smaller = slim(model, images[:1])
    frozen = pruner.frozen.of_slim(model, smaller.model, lambda one: slim(one, images[:1]).model)
    with torch.no_grad(), frozen.applied(smaller.model):
        assert torch.allclose(smaller.model(images), masked, rtol=1e-9)
    assert smaller.model[3].weight.shape[0] < 16


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"quantize": "int3"}, 'quantize="int3"'),
        ({"quantize": "int8", "quantize_options": {"bits": 3}}, "has no option bits: known: exclude, ranges, start"),
        ({"quantize": "int8", "quantize_options": {"start": "1"}}, "leaves nothing"),
        ({"quantize": "int8", "quantize_options": {"start": "12it"}}, "step 12 of a run of 12"),
        ({"quantize": "int8", "quantize_options": {"start": "4ep"}}, "step 12 of a run of 12"),
        ({"quantize": "int4w", "quantize_options": {"ranges": "guessed"}}, "known: observed, learned"),
        ({"quantize": "int8", "quantize_options": {"exclude": ["nothing"]}}, "matches no convolution"),
        ({"quantize": "int8", "quantize_options": {"exclude": "0"}}, "is no list of names or patterns"),
    ],
)
def test_bad_words_are_refused_before_training(values, words):
    with pytest.raises(Refusal, match=words):
        case_pruner(case_net(), "pdp", "random", 4, **values)


def test_a_state_of_another_quantization_is_refused():
    model, pruner = trained("pdp", **INT8)
    plain = case_pruner(case_net(), "pdp", "random", 4)
    with pytest.raises(Refusal, match="quantize=int8"):
        plain.load_state_dict(pruner.state_dict())
    with pytest.raises(Refusal, match="of another model"):
        Frozen("int8", 8, {"gone.weight": torch.ones(1, 1)}).check(model)


def test_a_compiled_model_computes_the_same():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    now = {"warmup": "0it", "ramp": "1it"}
    pruner = Pruner(model, "pdp", sparsity=0.5, epochs=1, steps_per_epoch=4, schedule=now, quantize="int8",
                    quantize_options={"start": "0"})  # fmt: skip
    pruner.start_epoch(0)
    inputs = torch.randn(3, 6)
    model(inputs), pruner.step()
    assert pruner.quantizer.active
    compiled = torch.compile(model, backend="aot_eager")
    gradients = []
    for one in (compiled, model):
        one(inputs).square().sum().backward()
        gradients.append(model[0].weight.grad.clone())
        model.zero_grad()
    assert torch.allclose(compiled(inputs), model(inputs), rtol=1e-6)
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-8)
