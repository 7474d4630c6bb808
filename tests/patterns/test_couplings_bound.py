"""Following and proving a model ends: in few forwards, whatever its depth, and the same on every machine."""

import pytest
import torch
from torch import nn

from pdp.patterns import find

DEEP = 1000  # layers


class Residual(nn.Module):
    """So many layers with a sum after every second one; `scale` makes each block another function without channels."""

    def __init__(self, layers, scale=False):
        super().__init__()
        self.stem, self.scale = nn.Linear(4, 4), scale
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(layers // 2)
        )
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            inner = block[1](block[0](x))
            x = x + 0.1 * block[2](inner * inner.shape[-1] if self.scale else inner)
        return self.head(x)


class Dense(nn.Module):
    """So many layers, each of which reads all before it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 + 2 * index, 2) for index in range(layers))
        self.head = nn.Linear(4 + 2 * layers, 2)

    def forward(self, x):
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)).relu())
        return self.head(torch.cat(found, 1))


def follow(model, example, monkeypatch):
    """The couplings, and how many forwards with numbers and on shapes alone it took."""
    counts = {"forwards": 0, "shapes": 0}

    def counted(one, inputs):
        counts["shapes" if next(one.parameters()).is_meta else "forwards"] += 1
        return call(one, inputs)

    call = find.call
    monkeypatch.setattr(find, "call", counted)
    return find.find_couplings(model.eval(), example), counts


def test_a_thousand_layers_are_followed_and_proven_in_five_forwards(monkeypatch):
    couplings, counts = follow(Residual(DEEP), torch.randn(1, 4), monkeypatch)
    assert counts == {"forwards": 5, "shapes": 0}
    assert sum(one.refused is None for one in couplings) == DEEP // 2 + 1


def test_where_all_is_wrong_it_ends_after_eight_with_the_reason(monkeypatch):
    couplings, counts = follow(Residual(DEEP, scale=True), torch.randn(1, 4), monkeypatch)
    assert counts["forwards"] <= 8 and counts["shapes"] <= 10
    assert "could not be settled in so many trials" in couplings[1].refused
    assert "another function" in couplings[1].refused


def test_in_a_small_model_only_what_is_wrong_stays(monkeypatch):
    model = Residual(12, scale=True)
    couplings, _ = follow(model, torch.randn(1, 4), monkeypatch)
    free = [one.name for one in couplings if one.refused is None]
    assert free == ["stem"]  # the sum; each inner width is multiplied by its own number


@pytest.mark.parametrize("layers, followed", [(40, True), (400, False)])
def test_layers_that_read_all_before_them_are_followed_as_far_as_it_can_be_paid(layers, followed, monkeypatch):
    monkeypatch.setattr("pdp.patterns.assemble._MOST_CHANNELS", 1 << 20)
    couplings, counts = follow(Dense(layers), torch.randn(1, 4), monkeypatch)
    assert counts["forwards"] <= 8
    free = [one for one in couplings[:-1] if one.refused is None]
    assert bool(free) == followed
    if not followed:
        assert "more concatenated channels meet in layers." in couplings[0].refused
