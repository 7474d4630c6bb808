"""CHEX against float64: first masks, shares, leverage scores, what regrows and how much, the masks after the end."""

import math

import numpy as np
import pytest
import torch
from channel_by_hand import (
    IMAGE,
    NORMS,
    UNITS,
    Net,
    assert_same_gradients,
    assert_zero_channels,
    examples,
    filters,
    global_counts,
    gradients,
    scales,
    smallest,
)
from torch import nn

from pdp import Pruner
from pdp.methods import chex

SHARE, REGROW, EPOCHS, END = 0.6, 0.3, 10, 6
ALL = sum(UNITS.values())


def make(**values):
    model = Net()
    options = {"sparsity": SHARE, "epochs": EPOCHS, "regrow": REGROW, "end": f"{END}ep", "example_input": IMAGE}
    return model, Pruner(model, "chex", "channel", **(options | values))


def kept(pruner):
    return {layer.name: layer.state["keep"].numpy().copy() for layer in pruner.layers}


def pruned_at(share):
    return math.floor(share * ALL + 0.5)


def level(epoch):
    """S - d_e; d_0 holds until the first update, nothing comes back from the end on."""
    last = min(epoch // 2 * 2, END)
    return SHARE - REGROW * (1 + math.cos(math.pi * last / END)) / 2


def leverage(model, name, alive, count):
    """Row norms of the leading right singular vectors of the (fan-in, units) matrix of what computes now."""
    columns = filters(model, name).T * alive
    assert columns.shape[0] >= columns.shape[1]
    return np.linalg.norm(np.linalg.svd(columns, full_matrices=False)[2].T[:, :count], axis=1)


def shuffle(model):
    """Other filters and scales, as training would make them."""
    with torch.no_grad():
        for name in ("one", "two", "last", "norm1", "norm2", "norm3"):
            parameter = model.get_submodule(name).weight
            parameter.copy_(torch.randn(parameter.shape))


def test_the_first_masks_are_by_l1_norm_with_d0_less():
    model, pruner = make()
    pruner.start_epoch(0)
    for name, keep in kept(pruner).items():
        count = math.floor((SHARE - REGROW) * UNITS[name] + 0.5)
        assert np.array_equal(keep, smallest(np.abs(filters(model, name)).sum(1), count))


def test_every_update_is_that_of_the_text():
    model, pruner = make()
    pruner.start_epoch(0)
    for epoch in range(1, EPOCHS):
        before = kept(pruner)
        shuffle(model)
        stored = {key: value.clone() for key, value in model.state_dict().items()}
        pruner.start_epoch(epoch)
        after = kept(pruner)
        assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())  # kept for regrowth
        if epoch % 2 or epoch > END:
            assert all(np.array_equal(before[name], after[name]) for name in UNITS)
            continue
        gamma = {name: scales(model, name) * before[name] for name in UNITS}
        down = global_counts(gamma, pruned_at(SHARE))
        up = global_counts(gamma, pruned_at(level(epoch)))
        for name in UNITS:
            ranks = np.where(before[name], leverage(model, name, before[name], UNITS[name] - down[name]), -1)
            selected = smallest(ranks, down[name])
            assert not (selected & ~before[name]).any()
            assert (after[name] | ~selected).all()  # what was selected stays
            assert int((after[name] & ~selected).sum()) == down[name] - up[name]
        assert sum(layer.pruned for layer in pruner.layers) == pruned_at(level(epoch))


@pytest.mark.parametrize("epochs", [range(10), range(3)])
def test_the_level_the_target_and_the_end(epochs):
    model, pruner = make()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    pruner.attach(optimizer)
    for epoch in epochs:
        pruner.start_epoch(epoch)
        if epoch >= 2:
            assert pruner.share == pruned_at(level(epoch)) / ALL
        assert pruner.at_target == (epoch >= END)
        images, labels = examples(epoch)
        expected, own = gradients(model, images, labels, kept(pruner))
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        assert abs(float(loss.detach()) - expected) < 1e-4
        assert_same_gradients(model, own)
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    last = kept(pruner)
    shuffle(model)
    pruner.finalize()
    if len(epochs) > END:
        assert all(np.array_equal(last[name], kept(pruner)[name]) for name in UNITS)  # those that were trained
    assert sum(layer.pruned for layer in pruner.layers) == pruned_at(SHARE)
    assert_zero_channels(model, kept(pruner))


def test_what_grows_is_what_the_kept_ones_do_not_span():
    """A masked channel has no rank, but its last values count when one is sampled: softmax of the residual norms."""
    for seed in range(5):
        model, pruner = make(seed=seed)
        pruner.start_epoch(0)
        masked = np.flatnonzero(~kept(pruner)["last"])[0]
        with torch.no_grad():
            model.last.weight[masked] = 50 * torch.randn(model.last.weight.shape[1:])
            # All of the cut falls on this layer, so that something of it grows back.
            for norm in NORMS["one"]:
                model.get_submodule(norm).weight.fill_(5.0)
        pruner.start_epoch(2)
        assert kept(pruner)["last"][masked]


def test_a_saved_run_goes_on_alike():
    model, pruner = make()
    for epoch in range(3):
        pruner.start_epoch(epoch)
    twin, other = make()
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    for epoch in range(3, EPOCHS):
        pruner.start_epoch(epoch)
        other.start_epoch(epoch)
        assert all(np.array_equal(kept(pruner)[name], kept(other)[name]) for name in UNITS)
        assert pruner.at_target == other.at_target


def test_equal_columns_have_equal_scores():
    """Of an SVD's last digits none is promised; a processor may treat the columns at the end of a matrix differently."""
    drawn = torch.randn(200, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kinds, kept in ((5, 3), (12, 5)):
        which = torch.arange(24) * 7 % kinds
        assert len(chex.leverage(drawn[:, which], kept).unique()) == kinds
