"""Layers that are first reached, or first get numbers, when scales already learn."""

import copy

import pytest
import torch
from torch import nn

from pdp import Pruner

EPOCHS, STEPS = 8, 6


class Late(nn.Module):
    """`late` is reached, or gets other inputs than zero, once `open` is set."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.late, self.last = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.kind, self.open = kind, False
        if kind == "late and zero":
            nn.init.zeros_(self.late.weight)
        if kind == "zero rows":
            nn.init.zeros_(self.late.weight[::2])

    def forward(self, values):
        hidden = torch.relu(self.first(values))
        if self.kind == "zero input":
            return self.last(hidden + self.late(hidden * float(self.open)))
        if self.kind == "rare expert":  # from the moment on, few samples of a batch
            chosen = torch.arange(len(values)) % 8 == 0
            return self.last(hidden.clone().masked_scatter(chosen[:, None], self.late(hidden[chosen]))) if self.open \
                else self.last(hidden)  # fmt: skip
        if self.kind == "zero rows":  # every other output is of no use, so that its weights stay what they were
            return self.last(hidden + self.late(hidden) * (torch.arange(16) % 2 + float(self.open)).clamp(max=1))
        return self.last(hidden + self.late(hidden) if self.open else hidden)


def run(kind, ranges="learned", opens=5, by_step=True, quantize="int8", epochs=EPOCHS, resume=None, compiled=False):
    """Trains; `resume` is the number of steps after which all of it goes on in new objects."""

    def made():
        torch.manual_seed(0)
        model = Late(kind)
        pruner = Pruner(
            model, "dense", epochs=EPOCHS, steps_per_epoch=STEPS if by_step else None, quantize=quantize,
            quantize_options={"start": "0.25", "ranges": ranges},
        )  # fmt: skip
        # A finite amount of weight decay must not move what no step has reached.
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
        pruner.attach(optimizer)
        return model, pruner, optimizer

    model, pruner, optimizer = made()
    called = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    for epoch in range(epochs):
        model.open = epoch >= opens
        pruner.start_epoch(epoch)
        for step in range(STEPS):
            values, wanted = batch(epoch * STEPS + step)
            (called(values) - wanted).square().mean().backward()
            pruner.after_backward()
            optimizer.step(), pruner.step(), optimizer.zero_grad()
            if resume == epoch * STEPS + step + 1:
                saved = copy.deepcopy((model.state_dict(), pruner.state_dict(), optimizer.state_dict()))
                model, pruner, optimizer = made()
                called = model
                model.open = epoch >= opens
                model.load_state_dict(saved[0]), pruner.load_state_dict(saved[1]), optimizer.load_state_dict(saved[2])
    return model, pruner


def batch(number):
    values = torch.randn(64, 12, generator=torch.Generator().manual_seed(number))
    return values, torch.stack([values[:, 0].abs(), values[:, 1] * values[:, 2], values[:, 3], values[:, 4].sin()], 1)


def compared(model, pruner):
    """The largest input of `late` in floats and quantized, and how far the quantized outputs are, relative."""
    pruner.finalize()
    model.eval().open = True
    values, largest, outputs = batch(999)[0], [], []
    hook = model.late.register_forward_hook(lambda module, inputs, output: largest.append(inputs[0].max().item()))
    with torch.no_grad():
        outputs.append(model(values))
        with pruner.frozen.applied(model):
            outputs.append(model(values))
    hook.remove()
    return (*largest, float((outputs[1] - outputs[0]).norm() / outputs[0].norm()))


@pytest.mark.parametrize("quantize", ["int8", "int4w"])
@pytest.mark.parametrize("by_step", [True, False], ids=["steps", "epochs"])
@pytest.mark.parametrize("ranges", ["observed", "learned"])
@pytest.mark.parametrize("opens", [5, 7], ids=["late", "last epoch"])
@pytest.mark.parametrize("kind", ["late", "rare expert", "zero input", "late and zero", "zero rows"])
def test_a_layer_gets_its_range_whenever_it_is_reached(kind, opens, ranges, by_step, quantize):
    model, pruner = run(kind, ranges, opens, by_step, quantize)
    assert (model.late.weight.abs().amax(1) > 0).all()
    floats, quantized, off = compared(model, pruner)
    assert floats / 2 < quantized < floats * 1.1, (floats, quantized)
    assert off < 0.2 if ranges == "observed" else off < 0.4  # learned scales cut off on purpose
    integers = pruner.frozen.integers("late.weight", model.late.weight).abs().amax(1)
    assert (integers >= {"int8": 64, "int4w": 4}[quantize]).all()  # no output's weights are lost in the rounding


def test_its_scale_is_learned_from_the_next_epoch_on():
    _, pruner = run("late", epochs=6)
    number = [one.name for one in pruner.quantizer.activations].index("late.input")
    assert not pruner.quantizer.ready[number] and pruner.quantizer.extras["activations"][number] == 0
    _, pruner = run("late")
    first, moved = pruner.quantizer.first["activations"][number], pruner.quantizer.extras["activations"][number]
    assert 1e-3 < first < 0.1 and moved != 0
    scale, _ = pruner.quantizer.freeze(pruner.model).activations["late.input"]
    assert torch.allclose(scale, first * moved.exp())
    low, high = pruner.quantizer.ranges.average[:, number].tolist()
    assert low == 0 and high / 255 == pytest.approx(float(scale), rel=0.5)


@pytest.mark.parametrize("kind", ["late", "zero input", "late and zero", "zero rows"])
@pytest.mark.parametrize("ranges", ["observed", "learned"])
def test_a_run_that_goes_on_from_any_step_is_the_same_run(kind, ranges):
    whole, pruner = run(kind, ranges)
    expected = whole.state_dict(), pruner.quantizer.freeze(whole)
    for step in (8, 14, 29, 31, 33, 36, 41, 47):
        model, again = run(kind, ranges, resume=step)
        assert all(torch.equal(value, expected[0][name]) for name, value in model.state_dict().items()), step
        frozen = again.quantizer.freeze(model)
        for found, wanted in ((frozen.weights, expected[1].weights), (frozen.activations, expected[1].activations)):
            assert found.keys() == wanted.keys()
            for name in found:
                assert torch.equal(torch.stack([*map(torch.as_tensor, found[name])]),
                                   torch.stack([*map(torch.as_tensor, wanted[name])])), (name, step)  # fmt: skip


def test_a_checkpoint_of_a_scale_of_no_range_goes_on_with_one():
    """As earlier versions wrote it: called ready, with the scale of an infinite range, and without `empty`."""
    model, pruner = run("late", epochs=6)
    state = copy.deepcopy(pruner.state_dict())
    number = [one.name for one in pruner.quantizer.activations].index("late.input")
    state["quantizer"]["ready"][number] = True
    state["quantizer"]["first"]["activations"][number] = 1e-8
    state["quantizer"]["zero_points"][number] = 0
    del state["quantizer"]["empty"]
    pruner.load_state_dict(state)
    model.open = True
    pruner.start_epoch(6)
    optimizer = torch.optim.AdamW([*model.parameters(), *pruner.quantizer.extras.values()], lr=0.001)
    for epoch in (6, 7):
        pruner.start_epoch(epoch)
        for step in range(STEPS):
            model(batch(step)[0]).square().mean().backward()
            pruner.after_backward(), optimizer.step(), pruner.step(), optimizer.zero_grad()
    floats, quantized, _ = compared(model, pruner)
    assert floats / 2 < quantized < floats * 1.1


def test_compiled_it_is_one_graph_and_the_same_run():
    for kind in ("late", "zero rows"):
        torch._dynamo.reset()
        (plain, _), (compiled, _) = run(kind), run(kind, compiled=True)
        for name, value in plain.state_dict().items():
            assert torch.allclose(compiled.state_dict()[name], value, atol=1e-4), name
