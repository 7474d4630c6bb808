"""Wanda and SparseGPT against their formulas in float64, and the walk through a model against one by hand."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import pdp
from pdp.layers import Layer, Site
from pdp.methods.calibrated import from_rows, inputs_of, keep_in_rows, to_rows
from pdp.methods.sparsegpt import Hessians, sparsegpt


def net(*sizes):
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*[one for layer in layers for one in (layer, nn.Tanh())]).double()


def linears(model):
    return [one for one in model.modules() if isinstance(one, nn.Linear)]


def by_hand(weight, inputs, share, group=None):
    """Wanda as the paper has it: the smallest |W| ||x|| of each row, or of each group of a row, are zero."""
    scores = weight.abs().numpy() * np.linalg.norm(inputs.numpy(), axis=0)
    result = weight.numpy().copy()
    width = group or weight.shape[1]
    for row in range(len(result)):
        for start in range(0, weight.shape[1], width):
            part = np.argsort(scores[row, start : start + width], kind="stable")[: int(share * width)]
            result[row, start + part] = 0
    return torch.from_numpy(result)


@pytest.mark.parametrize(("pattern", "share", "group"), [("random", 0.5, None), ("2:4", 0.5, 4), ("1:8", 0.875, 8)])
def test_wanda_is_its_formula_and_later_layers_see_pruned_ones(pattern, share, group):
    dense, inputs = net(16, 24, 8), torch.randn(50, 16, dtype=torch.double)
    model = copy.deepcopy(dense)
    given = None if group else share
    pruner = pdp.Pruner(model, "wanda", pattern, given, calibration=[inputs[:20], inputs[20:]])
    pruner.finalize()
    first, second = linears(dense)
    expected = by_hand(first.weight.detach(), inputs, share, group)
    torch.testing.assert_close(linears(model)[0].weight.detach(), expected, rtol=0, atol=0)
    seen = torch.tanh(functional.linear(inputs, expected, first.bias.detach()))
    expected = by_hand(second.weight.detach(), seen, share, group)
    torch.testing.assert_close(linears(model)[1].weight.detach(), expected, rtol=0, atol=0)


def obs(weight, inputs, choose, block, damping=0.01):
    """SparseGPT without its Cholesky trick: the inverse of what is left of the Hessian, anew for each column."""
    weight, columns = weight.clone(), weight.shape[1]
    hessian = 2 / len(inputs) * inputs.T @ inputs
    hessian += damping * hessian.diagonal().mean() * torch.eye(columns, dtype=weight.dtype)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    diagonal = torch.stack([one[0, 0] for one in inverses])
    keep = torch.ones_like(weight, dtype=torch.bool)
    for j in range(columns):
        choose(weight, diagonal, keep, j, block)
        gone = torch.where(keep[:, j], 0.0, weight[:, j]) / inverses[j][0, 0]
        weight[:, j:] -= gone[:, None] * inverses[j][0]
    return weight * keep


def choose_share(share):
    def choose(weight, diagonal, keep, j, block):
        if j % block == 0:
            part = weight[:, j : j + block]
            saliency = (part**2 / diagonal[j : j + block]).flatten()
            gone = saliency.argsort()[: round(share * saliency.numel())]
            keep[:, j : j + block] = (
                torch.ones_like(saliency, dtype=torch.bool).index_fill(0, gone, False).view_as(part)
            )

    return choose


def choose_two_of_four(weight, diagonal, keep, j, block):
    if j % 4 == 0:
        order = (weight[:, j : j + 4] ** 2 / diagonal[j : j + 4]).argsort(dim=1)
        keep[:, j : j + 4] = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :2], False)


@pytest.mark.parametrize("pattern", ["random", "2:4"])
@pytest.mark.parametrize("block", [8, 128])
def test_sparsegpt_is_obs_column_by_column(pattern, block):
    dense, inputs = net(32, 12), torch.randn(200, 32, dtype=torch.double) @ torch.randn(32, 32, dtype=torch.double)
    model = copy.deepcopy(dense)
    share = 0.75 if pattern == "random" else None
    pruner = pdp.Pruner(model, "sparsegpt", pattern, share, calibration=[inputs[:70], inputs[70:]], block=block)
    pruner.finalize()
    choose = choose_share(0.75) if pattern == "random" else choose_two_of_four
    expected = obs(linears(dense)[0].weight.detach(), inputs, choose, block)
    torch.testing.assert_close(linears(model)[0].weight.detach(), expected, rtol=1e-8, atol=1e-10)
    # What it is for: nearer to the dense layer's outputs than the same mask alone.
    weight, mask = linears(dense)[0].weight.detach(), linears(model)[0].weight.detach() != 0
    off = [(inputs @ (one - weight).T).norm() for one in (linears(model)[0].weight.detach(), weight * mask)]
    assert off[0] < off[1]


def test_sparsegpt_gives_up_dead_inputs_first_and_counts_exactly():
    inputs = torch.randn(40, 16, dtype=torch.double)
    inputs[:, [1, 5, 9]] = 0
    statistics = Hessians()
    statistics.add(inputs[None])
    weight, keep = sparsegpt(torch.randn(6, 16, dtype=torch.double), statistics.mean[0], 30, (0, 0), 8, 0.01)
    assert int((~keep).sum()) == 30 and not weight[~keep].any()
    assert not keep[:, [1, 5, 9]].any()


@given(rows=st.integers(1, 7), columns=st.integers(1, 9), data=st.data())
def test_rows_lose_as_many_as_are_asked_for_and_nearly_alike(rows, columns, data):
    pruned = data.draw(st.integers(0, rows * columns))
    scores = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns)))
    scores = scores.view(rows, columns).float()
    gone = ~keep_in_rows(scores, pruned) if pruned < rows * columns else torch.ones(rows, columns, dtype=torch.bool)
    assert int(gone.sum()) == pruned
    counts = gone.sum(1)
    assert int(counts.max() - counts.min()) <= 1
    for row in range(rows):
        if gone[row].any() and not gone[row].all():
            assert scores[row][gone[row]].max() <= scores[row][~gone[row]].min()


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding="valid"),
    nn.Conv2d(4, 8, (3, 1), padding="same", groups=4, bias=False),
    nn.Conv2d(4, 8, 3, padding=2, padding_mode="reflect", groups=2),
    nn.Conv1d(4, 6, 3, padding=1, groups=2),
    nn.Linear(4, 6),
]


@pytest.mark.parametrize("module", CONVOLUTIONS, ids=str)
def test_unfolded_inputs_times_rows_are_what_the_layer_computes(module):
    module = copy.deepcopy(module).double()
    shape = {nn.Linear: (3, 5, 4), nn.Conv1d: (3, 4, 9)}.get(type(module), (3, 4, 9, 8))
    inputs = torch.randn(shape, dtype=torch.double)
    layer = Layer("x", "", "weight", [Site(module, "weight", module)])
    rows = to_rows(layer, module.weight)
    torch.testing.assert_close(from_rows(layer, rows), module.weight, rtol=0, atol=0)
    found = inputs_of(module, inputs) @ rows.transpose(1, 2)  # (groups, samples, rows)
    if module.bias is not None:
        found = found + module.bias.view(len(rows), 1, -1)
    outputs = module(inputs)
    wanted = (
        outputs.flatten(0, -2) if isinstance(module, nn.Linear) else outputs.flatten(2).transpose(1, 2).flatten(0, 1)
    )
    torch.testing.assert_close(found.transpose(0, 1).flatten(1), wanted)


class Texts(nn.Module):
    """A block that is entered twice, one that no sample reaches, and padding that does not count."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, input_ids, attention_mask):
        hidden = functional.one_hot(input_ids, 8).double()
        return self.layers[0](torch.tanh(self.layers[0](hidden)))


def test_shared_blocks_padding_and_unreached_layers():
    model = Texts().double()
    dense = copy.deepcopy(model)
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])
    mask = (ids != 0).long()
    with pytest.warns(UserWarning, match="no calibration sample reaches layers.1"):
        pruner = pdp.Pruner(model, "wanda", sparsity=0.5, calibration=[{"input_ids": ids, "attention_mask": mask}])
    pruner.finalize()
    hidden = functional.one_hot(ids, 8).double()[mask.bool()]
    both = torch.cat([hidden, torch.tanh(dense.layers[0](hidden)).detach()])
    expected = by_hand(dense.layers[0].weight.detach(), both, 0.5)
    torch.testing.assert_close(model.layers[0].weight.detach(), expected, rtol=0, atol=0)
    assert int((model.layers[1].weight == 0).sum()) == 32 and model.training


def test_training_goes_on_under_the_mask_and_a_state_restores_it():
    model, inputs = net(8, 8, 8), torch.randn(30, 8, dtype=torch.double)
    pruner = pdp.Pruner(model, "sparsegpt", sparsity=0.5, epochs=2, calibration=[inputs])
    zeros = [one.weight == 0 for one in linears(model)]
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    other = net(8, 8, 8)
    again = pdp.Pruner(other, "sparsegpt", sparsity=0.5, epochs=2)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(pruner.state_dict())
    for one, made in ((pruner, model), (again, other)):
        optimizer = torch.optim.AdamW(made.parameters(), 0.1)
        for epoch in range(2):
            one.start_epoch(epoch)
            made(inputs).square().sum().backward()
            optimizer.step()
            one.step()
            optimizer.zero_grad()
        one.finalize()
        assert [bool(((layer.weight == 0) == zero).all()) for layer, zero in zip(linears(made), zeros, strict=True)]
        for layer, zero in zip(linears(made), zeros, strict=True):
            assert torch.equal(layer.weight == 0, zero)


def test_refusals_in_pythons_words():
    model, inputs = net(8, 8), torch.randn(4, 8, dtype=torch.double)
    with pytest.raises(ValueError, match="method=pdp takes no calibration samples"):
        pdp.Pruner(model, "pdp", sparsity=0.5, calibration=[inputs])
    model = net(8, 8)
    with pytest.raises(ValueError, match="no calibration samples: give at least one batch"):
        pdp.Pruner(model, "wanda", sparsity=0.5, calibration=[])
    with pytest.raises(ValueError, match=r"call pruner\.calibrate\(batches\) before"):
        pdp.Pruner(net(8, 8), "wanda", sparsity=0.5).start_epoch(0)
    with pytest.raises(ValueError, match="allocation=global has no meaning for method=wanda"):
        pdp.Pruner(net(8, 8), "wanda", sparsity=0.5, allocation="global")
    with pytest.raises(ValueError, match='method=wanda does not know pattern="channel"'):
        pdp.Pruner(net(8, 8), "wanda", "channel", 0.5, example_input=inputs)


def test_what_reads_its_weight_itself_stays_dense_and_is_named():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    pruner = pdp.Pruner(layer, "wanda", "2:4", calibration=[torch.randn(2, 5, 8)])
    pruner.finalize()
    assert "inputs are not seen" in pruner.skipped["self_attn.in_proj_weight"]
    assert float((layer.linear1.weight == 0).float().mean()) == 0.5
