"""What a step finds for all layers at once against each layer by itself."""

import timm
import torch
from small_models import batch
from test_channel import NOW, make
from torch import nn

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
            for unit, values in zip(member.units.tolist(), member.tensor.detach().double(), strict=True):
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
            assert torch.allclose(torch.stack(cuts), torch.stack(expected), rtol=1e-6)
    with torch.no_grad():
        for layer in pruner.layers:
            layer.pruned = 4
            for member in layer.members:
                if member.weighs:
                    member.tensor.fill_(0.5)
    assert [float(cut) for cut in pruner.pattern.cuts(pruner.layers)] == [0.5, 0.5]
    assert pruner.pattern.cuts([]) == []


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
