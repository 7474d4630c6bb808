"""What a step computes for all layers at once, against each layer by itself."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from channel_models import NOW, make
from small_models import batch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from pdp import Pruner
from pdp.masks.cut import cut_at
from pdp.patterns.unit_table import UnitTable


def transformer():
    """Heads, whose weights lie out of order, beside hidden units."""
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=4, num_classes=4
    )
    values = {"pattern": "channel", "sparsity": 0.4, "epochs": 4, "schedule": NOW, "allocation": "uniform"}
    return model, Pruner(model, example_input=torch.zeros(1, 3, 32, 32), **values)


def conv1d():
    """Weights that lie (in, out), so that a unit's weights are not neighbours."""
    sizes = {
        "n_embd": 24,
        "n_layer": 1,
        "n_head": 3,
        "vocab_size": 20,
        "n_positions": 8,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager"))
    values = {"pattern": "channel", "sparsity": 0.4, "epochs": 4, "schedule": NOW, "allocation": "uniform"}
    return model, Pruner(model, example_input={"input_ids": torch.zeros(1, 8, dtype=torch.long)}, **values)


def pruners():
    torch.manual_seed(4)
    yield transformer()
    for options in ({}, {"saliency": "l2"}, {"prune_stem": True}):
        yield make(pattern_options=options, temperature_mode="relative")
    model, pruner = make()
    yield model.to(memory_format=torch.channels_last), pruner
    yield make(temperature_mode="absolute")


def filters(layer):
    """The weights of each unit, float64."""
    parts = [[] for _ in range(layer.units)]
    for member in layer.members:
        if member.weighs:
            for unit, values in zip(member.units.tolist(), member.rows(member.tensor.detach()).double(), strict=True):
                parts[unit].append(values.reshape(-1))
    return torch.stack([torch.cat(one) for one in parts])


def test_cuts_temperatures_and_masks_are_those_of_each_layer_in_float64():
    for _, pruner in pruners():
        pruner.start_epoch(0)
        l2 = pruner.pattern.options.saliency == "l2"
        for layer in pruner.layers:
            square = filters(layer).square().sum(1) if l2 else filters(layer).square().mean(1)
            cut = cut_at(square.sqrt(), layer.pruned)
            assert torch.allclose(layer.state["cut"].double(), cut, rtol=1e-6)
            tau = 0.002 * cut**2 if pruner.method.relative else torch.tensor(1e-3)
            assert ("temperature" in layer.state) == pruner.method.relative
            if pruner.method.relative:
                assert torch.allclose(layer.state["temperature"].double(), tau, rtol=1e-5)
            assert layer.state["mask"].dtype == torch.float32
            # A mask moves by a quarter of what z does, which is 500 times as large as the rounding of s^2.
            assert torch.allclose(layer.state["mask"].double(), torch.sigmoid((square - cut**2) / tau), atol=3e-4)


def test_any_number_of_pruned_units_has_its_cut_and_equal_saliencies_are_it_exactly():
    _, pruner = make()
    for share in ("none", "some", "all"):
        for count, layer in enumerate(pruner.layers, 3):
            layer.pruned = {"none": 0, "some": count, "all": layer.units}[share]
        for _ in range(2):
            cuts = pruner.pattern.cuts(pruner.layers)
            expected = [cut_at(pruner.pattern.saliency(layer), layer.pruned) for layer in pruner.layers]
            assert torch.equal(torch.stack(cuts), torch.stack(expected))
    for value in (0.5, 0.3, 1.7e-4, 3e5):
        with torch.no_grad():
            for layer in pruner.layers:
                layer.pruned = 4
                for member in layer.members:
                    if member.weighs:
                        member.tensor.fill_(value)
        assert torch.equal(torch.stack(pruner.pattern.cuts(pruner.layers)), torch.full((2,), value))
    assert pruner.pattern.cuts([]) == []


@pytest.mark.parametrize("saliency", ["rms", "l2", "l1"])
def test_units_of_equal_weights_are_equal_to_the_last_bit_and_go_lowest_index_first(saliency):
    """Whatever order the weights lie in and however they are summed: three filters, each many times over."""
    generator = torch.Generator().manual_seed(8)
    made = [make(method="gmp", pattern_options={"saliency": saliency}) for _ in range(2)]
    made[0][0].to(memory_format=torch.channels_last)
    if saliency == "rms":
        made += [transformer(), conv1d()]
    for _, pruner in made:
        for layer in pruner.layers:
            kinds = torch.randint(0, 3, (layer.units,), generator=generator)
            with torch.no_grad():
                for member in layer.members:
                    if member.weighs:
                        rows = member.rows(member.tensor)
                        for unit in range(layer.units):
                            own = (member.units == unit).nonzero().reshape(-1)
                            first = (member.units == int((kinds == kinds[unit]).nonzero()[0])).nonzero().reshape(-1)
                            # Another order of the same weights is the same saliency too.
                            rows[own] = rows[first].flip(-1) if unit % 2 else rows[first]
            found = pruner.pattern.saliency(layer)
            assert len(found.unique()) == len(kinds.unique())
            exact = filters(layer)
            sums = [math.fsum(abs(one) if saliency == "l1" else one * one for one in unit.tolist()) for unit in exact]
            if saliency != "l1":
                sums = [math.sqrt(one / (exact.shape[1] if saliency == "rms" else 1)) for one in sums]
            assert torch.allclose(found.double(), torch.tensor(sums, dtype=torch.float64), rtol=1.2e-7, atol=0)
            layer.pruned = layer.units // 2
            order = sorted(range(layer.units), key=lambda unit: (float(found[unit]), unit))
            assert (~pruner.pattern.keep(layer, found)).nonzero().reshape(-1).tolist() == sorted(order[: layer.pruned])


def bits(pruner):
    return [one.view(torch.int32).tolist() for one in map(pruner.pattern.saliency, pruner.layers)]


def seeded():
    """Weights made of integers: random numbers themselves come out of vectors of the processor's width."""
    generator = torch.Generator().manual_seed(11)
    made = [make(), transformer()]
    for model, _ in made:
        for one in model.parameters():
            whole = torch.randint(-(2**20), 2**20, one.shape, generator=generator)
            one.data.copy_(whole / 2**20)
    return [pruner for _, pruner in made]


@pytest.mark.slow
def test_saliencies_have_the_same_bits_on_a_processor_with_narrower_vectors():
    """PyTorch's own switch makes a process add up as on a processor without AVX."""
    code = "import json, test_unit_table as own; print(json.dumps([own.bits(one) for one in own.seeded()]))"
    tests = Path(__file__).parents[1]
    paths = [str(tests / "patterns"), str(tests), str(tests.parent)]
    narrow = {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | narrow, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [bits(one) for one in seeded()]


def test_masks_of_a_table_know_one_temperature_or_one_a_layer():
    _, pruner = make()
    table = UnitTable(pruner.layers, [0.1, 0.2])
    squares, cuts, taus = torch.rand(22), torch.tensor([0.3, 0.4]), torch.tensor([0.5, 0.7])
    for given, (first, second) in ((taus, taus), (0.6, (0.6, 0.6))):
        one, two = table.split(table.masks(squares, cuts, given))
        assert torch.allclose(one, torch.sigmoid((squares[:12] - 0.09) / first))
        assert torch.allclose(two, torch.sigmoid((squares[12:] - 0.16) / second))
        masks = torch.cat((one, two))
        one, two = table.split(table.steepness(masks, given))
        slopes = masks * (1 - masks)
        assert torch.allclose(one, slopes[:12] * 2 * 0.1 / first)
        assert torch.allclose(two, slopes[12:] * 2 * 0.2 / second)


def test_steps_change_what_a_layer_holds_in_place_and_every_layer_holds_its_own():
    model, pruner = make(refresh=2, temperature_mode="relative", kappa=0.3)
    pruner.start_epoch(0)
    held = [(layer, key, value) for layer in pruner.layers for key, value in layer.state.items()]
    assert {key for _, key, _ in held} == {"cut", "temperature", "mask"}
    assert len({value.untyped_storage().data_ptr() for _, _, value in held}) == len(held)
    before = [value.clone() for _, _, value in held]
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(2):
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        pruner.step()
        for (layer, key, value), old in zip(held, before, strict=True):
            assert layer.state[key] is value
            assert torch.equal(value, old) == (key != "mask" and step == 0)
    for layer in pruner.layers:
        layer.active, layer.state["mask"] = False, layer.state["mask"].fill_(7.0)
    pruner.step()
    assert all(bool((layer.state["mask"] == 7).all()) for layer in pruner.layers)
