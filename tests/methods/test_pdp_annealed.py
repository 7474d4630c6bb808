"""PDP's annealed and learned temperatures against float64: every step of a run, for every pattern."""

import math

import numpy as np
import pytest
import torch
from by_hand import (
    UNITS,
    HandSgd,
    close,
    computed_with,
    gradients_of,
    rounded,
    sgd,
    stored,
    train_step,
    two_layers,
    without_smallest_of_all,
    zeros_in,
)
from torch import nn

from pdp import Pruner
from pdp.errors import Refusal
from pdp.methods.pdp import _with_learned_temperature

EPOCHS, STEPS = 5, 4
TOTAL = EPOCHS * STEPS


def cut_of(weight, pruned):
    ordered = np.sort(abs(weight).reshape(-1))
    return -math.inf if not pruned else (ordered[pruned - 1] + ordered[pruned]) / 2


def sigmoid(z):
    return 1 / (1 + np.exp(-np.clip(z, -60, 60)))


def annealed(shape, first, last, step, start, share):
    done = min(1.0, max(0.0, (step - start) / (share * (TOTAL - start))))
    return first * (last / first) ** done if shape == "geometric" else first + (last - first) * done


@pytest.mark.parametrize("shape", ["geometric", "linear"])
@pytest.mark.parametrize("mode", ["relative", "absolute"])
@pytest.mark.parametrize("begins", ["target", "0.25"])
def test_a_whole_run_as_by_hand(shape, mode, begins):
    """A cubic ramp in steps 4 to 11 of 20, then the temperature falls over half of what is left, or from step 5 on."""
    model = two_layers()
    first, last = (0.5, 0.01) if mode == "relative" else (0.05, 1e-3)
    names = ("kappa", "kappa_end") if mode == "relative" else ("temperature", "temperature_end")
    pruner = Pruner(
        model, "pdp", sparsity=0.7, epochs=EPOCHS, steps_per_epoch=STEPS, temperature_mode=mode, anneal=shape,
        anneal_from=begins, anneal_share=0.5, schedule={"name": "cubic", "unit": "step", "warmup": "4it", "ramp": "8it"},
        **dict(zip(names, (first, last), strict=True)),
    )  # fmt: skip
    optimizer = sgd(model, pruner, lr=0.05, momentum=0.9, decay=0.01)
    weights, hand, final, seen = stored(model), HandSgd(0.05, 0.9, 0.01), None, []
    start = 11 if begins == "target" else 5  # at step 11 the ramp's eighth moment is the target
    for step in range(TOTAL):
        if step % STEPS == 0:
            pruner.start_epoch(step // STEPS)
        fraction = 0.0 if step < 4 else 1 - (1 - min(1, (step - 3) / 8)) ** 3
        if fraction and final is None:
            final = zeros_in(without_smallest_of_all([abs(w) for w in weights], rounded(0.7 * UNITS)))
        pruned = [rounded(fraction * one) for one in final or (0, 0)]
        value = annealed(shape, first, last, step, start, 0.5)
        seen.append(value)
        masks, slopes = [], []
        for weight, count in zip(weights, pruned, strict=True):
            t = cut_of(weight, count)
            tau = value * t * t if mode == "relative" else value
            mask = sigmoid((weight**2 - t * t) / tau) if count else np.ones_like(weight)
            masks.append(mask)
            slopes.append(mask + 2 * weight**2 / tau * mask * (1 - mask) if count else mask)
        effective = [w * m for w, m in zip(weights, masks, strict=True)]
        assert computed_with(model, effective)
        gradients = [g * slope for g, slope in zip(gradients_of(effective, step), slopes, strict=True)]
        assert close(train_step(model, pruner, optimizer, step), gradients, rtol=1e-5, atol=1e-7)
        weights = hand.step(weights, gradients)
        assert close(stored(model), weights, rtol=1e-5, atol=1e-7)
    assert seen[0] == first and seen[-1] == pytest.approx(last) and len(set(seen)) > 4
    expected = [w * (abs(w) > cut_of(w, count)) for w, count in zip(weights, final, strict=True)]
    pruner.finalize()
    assert close(stored(model), expected, rtol=1e-5, atol=1e-7)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, bias=False),
        nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 8),
    )  # fmt: skip


@pytest.mark.parametrize("pattern", ["random", "2:4", "channel"])
def test_fast_paths_have_the_temperature_of_each_step(pattern):
    """float32, whole-model forwards and single places, against the formula at the cut and temperature of that step."""
    model = net()
    pruner = Pruner(
        model, "pdp_annealed", pattern, sparsity=None if ":" in pattern else 0.5, epochs=4, steps_per_epoch=3,
        schedule={"warmup": "2it", "ramp": "3it"}, example_input=torch.zeros(1, 3, 6, 6),
    )  # fmt: skip
    optimizer = sgd(model, pruner, lr=0.05)
    kappas = []
    for step in range(12):
        if step % 3 == 0:
            pruner.start_epoch(step // 3)
        images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        used = {}
        hooks = [
            layer.sites[0].module.register_forward_pre_hook(
                lambda module, _, name=layer.name, used=used: used.update({name: module.weight})
            )
            for layer in pruner.layers
        ]
        nn.functional.mse_loss(model(images), torch.ones(4, 8)).backward()
        for hook in hooks:
            hook.remove()
        for layer in pruner.layers:
            if not layer.active:
                continue
            weight = layer.weight.detach().double()
            units = weight.flatten(1).square().mean(1) if pattern == "channel" else weight.square()
            cut = layer.state["cut"].double()
            some = cut[cut.isfinite()] if cut.dim() else cut
            kappas.append(float(layer.state["temperature"]) / float(some.square().mean()))
            if pattern == "2:4":
                cut = pruner.pattern.spread(cut, layer, layer.members[0], layer.weight)
            if pattern == "channel":
                continue  # a unit's norm is that of all that is coupled: its mask is held below
            mask = torch.sigmoid((units - cut * cut.abs()) / layer.state["temperature"].double())
            assert torch.allclose(used[layer.name].detach().double(), mask * weight, rtol=1e-4, atol=1e-6)
        if pattern == "channel":
            for layer in pruner.layers:
                if layer.active:
                    square = pruner.pattern.saliency(layer).double().square()
                    z = (square - layer.state["cut"].double().square()) / layer.state["temperature"].double()
                    assert torch.allclose(layer.state["mask"].double(), torch.sigmoid(z), atol=1e-4)
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    held = [kappa for number, kappa in enumerate(kappas) if number == 0 or kappa != kappas[number - 1]]
    assert held[0] == pytest.approx(0.3, rel=1e-4) and held[-1] == pytest.approx(9e-5, rel=1e-3) and len(held) > 5


@pytest.mark.slow
def test_a_step_that_is_compiled_is_compiled_once_whatever_the_temperature():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, counter = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)), CompileCounter()
    pruner = Pruner(model, "pdp_annealed", sparsity=0.5, epochs=6, steps_per_epoch=3, schedule={"name": "constant"})
    compiled, optimizer, seen = torch.compile(model, backend=counter), sgd(model, pruner, lr=0.05), set()
    for step in range(18):
        if step % 3 == 0:
            pruner.start_epoch(step // 3)
        compiled(torch.ones(2, 8)).sum().backward()
        seen.add(float(pruner.layers[0].state["temperature"]))
        if step == 0:
            once = counter.frame_count
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert counter.frame_count == once > 0 and len(seen) > 10


@pytest.mark.parametrize("kappa", [None, 0.2])
def test_a_learned_temperature_gets_the_gradient_of_the_mask(kappa):
    model = two_layers()
    pruner = Pruner(
        model, "pdp", sparsity=0.5, epochs=2, schedule={"name": "constant"}, temperature_mode="learned",
        temperature_lr=0.3, temperature_decay=0.01, **({"temperature": 0.02} if kappa is None else {"kappa": kappa}),
    )  # fmt: skip
    optimizer = sgd(model, pruner, lr=0.05)
    pruner.start_epoch(0)
    weights = stored(model)
    cuts = [cut_of(w, layer.pruned) for w, layer in zip(weights, pruner.layers, strict=True)]
    taus = [0.02 if kappa is None else kappa * t * t for t in cuts]
    masks = [sigmoid((w**2 - t * t) / tau) for w, t, tau in zip(weights, cuts, taus, strict=True)]
    upstream = gradients_of([w * m for w, m in zip(weights, masks, strict=True)], 0)
    slopes = [m + 2 * w**2 / tau * m * (1 - m) for w, m, tau in zip(weights, masks, taus, strict=True)]
    assert close(train_step(model, pruner, optimizer, 0), [g * s for g, s in zip(upstream, slopes, strict=True)])
    for layer, g, w, m, t, tau in zip(pruner.layers, upstream, weights, masks, cuts, taus, strict=True):
        in_log = -(g * w * (w**2 - t * t) / tau * m * (1 - m)).sum()
        moved = math.log(tau) - 0.3 * (in_log + 0.01 * math.log(tau))
        assert float(pruner.method.extras[layer.name].detach()) == pytest.approx(moved, rel=1e-5, abs=1e-6)
        assert pruner.soft_gap().set_index("name").temperature[layer.name] == pytest.approx(math.exp(moved), rel=1e-4)
    pruner.finalize()
    assert sum(zeros_in(stored(model))) == UNITS // 2


@pytest.mark.parametrize("cut", [-math.inf, 0.0, 0.3, math.inf])
def test_its_gradient_equals_differences_and_is_a_number_at_endless_cuts(cut):
    weight = torch.tensor([-0.7, -0.2, 0.1, 0.31, 0.9], dtype=torch.float64, requires_grad=True)
    log_tau = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(cut, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w, s: _with_learned_temperature(w, t, s), (weight, log_tau))


def test_a_moving_budget_is_one_cut_over_all_weights_as_they_are():
    model = two_layers()
    schedule = {"name": "linear", "unit": "step", "warmup": "1it", "ramp": "4it"}
    pruner = Pruner(model, "pdp", sparsity=0.6, epochs=2, steps_per_epoch=4, budget="moving", schedule=schedule)
    optimizer = sgd(model, pruner, lr=0.5)
    seen = []
    for step in range(8):
        if step % 4 == 0:
            pruner.start_epoch(step // 4)
        fraction = min(1.0, step / 4)
        counts = [layer.pruned for layer in pruner.layers]
        if step <= 4:  # while it moves, and at an epoch's start
            keep = without_smallest_of_all([abs(w) for w in stored(model)], rounded(fraction * 0.6 * UNITS))
            assert counts == zeros_in(keep)
        seen.append(tuple(counts))
        train_step(model, pruner, optimizer, step)
    assert sum(seen[-1]) == rounded(0.6 * UNITS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"anneal": "geometric"}, "kappa_end"),
        ({"anneal": "geometric", "temperature_mode": "relative", "temperature_end": 1e-5}, "kappa_end"),
        ({"anneal": "geometric", "temperature_mode": "absolute", "kappa_end": 1e-5}, "temperature_end"),
        ({"kappa_end": 1e-3}, "anneal=none"),
        ({"anneal": "cosine", "kappa_end": 1e-3}, "geometric"),
        ({"anneal": "geometric", "kappa_end": 0.0}, "above 0"),
        ({"anneal": "geometric", "kappa_end": 1e-3, "anneal_share": 1.5}, "at most 1"),
        ({"anneal": "geometric", "kappa_end": 1e-3, "anneal_from": "goal"}, "target"),
        ({"anneal": "geometric", "kappa_end": 1e-3, "anneal_from": "1.5"}, "anneal_from"),
        ({"temperature_mode": "learned", "anneal": "linear", "kappa_end": 1e-3}, "learned"),
        ({"temperature_mode": "learned", "detach_cut": False}, "detach_cut"),
        ({"temperature_lr": 0.1}, "learned"),
        ({"budget": "roaming"}, "moving, fixed"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_change(options, said):
    with pytest.raises(Refusal, match=".") as refused:
        Pruner(two_layers(), "pdp", sparsity=0.5, epochs=2, **options)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_whose_steps_nobody_counted_anneals_too():
    """Epochs until the first has ended, then steps of what it took."""
    model = two_layers()
    pruner = Pruner(model, "pdp_annealed", sparsity=0.5, epochs=6, schedule={"warmup": "1ep", "ramp": "1ep"})
    optimizer = sgd(model, pruner, lr=0.05)
    kappas = []
    for step in range(18):
        if step % 3 == 0:
            pruner.start_epoch(step // 3)
        layer = pruner.layers[0]
        if layer.active:
            kappas.append(float(layer.state["temperature"]) / float(layer.state["cut"]) ** 2)
        train_step(model, pruner, optimizer, step)
    expected = [0.3 * (9e-5 / 0.3) ** min(1, (step / 3 - 1) / 4) for step in range(3, 18)]
    assert kappas == pytest.approx(expected, rel=1e-4)
