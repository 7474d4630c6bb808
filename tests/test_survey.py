"""Every weight of a model belongs to a prunable layer, or is listed with the reason why it stays dense."""

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.utils import prune

from pdp import Pruner
from pdp.errors import Refusal
from pdp.survey import survey

NOW = {"warmup": "0ep", "ramp": "1ep"}


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gates = nn.Parameter(torch.randn(3, 8, 8))


class Other(nn.Parameter):
    """A weight of a type of its own."""


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain, self.first = nn.Linear(8, 8), nn.Conv2d(3, 8, 3)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.masked = nn.Linear(8, 8)
        prune.l1_unstructured(self.masked, "weight", 0.5)
        self.recurrent, self.cell, self.pair = nn.LSTM(8, 8), nn.GRUCell(8, 8), nn.Bilinear(8, 8, 8)
        self.table, self.tied = nn.Embedding(5, 8), nn.Linear(8, 5)
        self.tied.weight = self.table.weight
        self.experts, self.frozen, self.left = Experts(), nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)
        self.standard, self.typed = StdConv2d(3, 8, 3), nn.Linear(8, 8)
        self.typed.weight = Other(torch.randn(8, 8))
        self.lazy, self.attention = nn.LazyLinear(4), nn.MultiheadAttention(8, 2)


REASONS = {
    "normed.parametrizations.weight.original1": "parametrized",
    "spectral.parametrizations.weight.original": "parametrized",
    "masked.weight_orig": "computes its weight from it",
    "recurrent.weight_ih_l0": "recurrent",
    "cell.weight_hh": "recurrent",
    "pair": "bilinear",
    "table": "embedding",
    "tied": "tied to table.weight",
    "experts.gates": "3x8x8",
    "frozen": "frozen",
    "left": "excluded by left",
    "standard": "changes its weight before it multiplies",
    "typed": "another type of weight, Other",
    "lazy": "not initialised",
}


def test_every_weight_is_a_layers_or_has_its_reason():
    model = Everything()
    layers, reasons = survey(model, ["left"])
    taken = {layer.parameter for layer in layers}
    assert taken == {
        *("plain.weight", "first.weight", "attention.in_proj_weight", "attention.out_proj.weight"),
    }
    for name, word in REASONS.items():
        assert word in reasons[name], (name, reasons[name])
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter) or parameter.dim() > 1:
            assert name in taken or name in reasons or name.removesuffix(".weight") in reasons, name


def test_what_a_pattern_leaves_is_named_too_and_the_share_is_of_all():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.LazyLinear(4))
    model(torch.zeros(1, 3, 8, 8))
    pruner = Pruner(model, pattern="2:4", schedule=NOW, epochs=4)
    assert pruner.skipped == {"0": "the stem"}
    assert pruner.prunable_share == pytest.approx(1 - 216 / (216 + 576 + 8 * 16 * 4))
    assert pruner.report().attrs["prunable_share"] == pruner.prunable_share
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    pruner = Pruner(block, pattern="channel", sparsity=0.5, schedule=NOW, epochs=4, example_input=torch.zeros(1, 3, 8))
    assert {"self_attn.in_proj_weight", "self_attn.out_proj"} <= set(pruner.skipped)


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        (StdConv2d(3, 8, 3), False),
        (ScaledStdConv2d(3, 8, 3), False),
        (Conv2dSame(3, 8, 3, stride=2), True),
        (nn.Conv2d(4, 8, 3, padding_mode="circular", groups=2), True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_layer_is_taken_where_its_zeros_stay_zeros(layer, kept):
    layers, reasons = survey(nn.Sequential(layer, nn.Linear(4, 4)))
    assert ("0" in {one.name for one in layers}) is kept and ("0" in reasons) is not kept


def test_nothing_to_prune_says_why():
    with pytest.raises(Refusal, match=r"no layer to prune.*: 0\.weight_ih_l0 \(of a recurrent layer.*and 1 more"):
        Pruner(nn.Sequential(nn.LSTM(4, 4), nn.Embedding(3, 4), nn.Bilinear(2, 2, 2)), sparsity=0.5)
    with pytest.raises(Refusal, match=r"0 \(frozen \(requires_grad=False\)\)"):
        Pruner(nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), sparsity=0.5)
