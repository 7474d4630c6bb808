"""Hard channels: exact zeros, exact shares of channels or multiply-adds, and the slim model that is left."""

import math

import pytest
import timm
import torch
from channel_models import IMAGE, NOW, Residual, make, train
from small_models import batch
from torch import nn
from torchvision.models import resnet18

from pdp import Pruner, count_macs
from pdp.errors import Refusal
from pdp.export.compare import difference
from pdp.export.slim import slim


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


def test_a_model_without_zero_channels_cannot_be_slimmed():
    with pytest.raises(Refusal, match="no channel"):
        slim(Residual(), IMAGE)


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
