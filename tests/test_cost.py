"""Counts of parameters and MACs against published ones, against FlopCounterMode and by hand."""

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ViT_B_16_Weights, mobilenet_v2, resnet18, resnet50, vit_b_16

from pdp import Pruner, count_macs
from pdp.cost import count_bytes, count_parameters
from pdp.survey import find_layers

# torchvision's documentation, the MobileNet-v1 of STR's README (4.21 M, 569 M)
PUBLISHED = [
    (resnet18, 11_689_512, 11_678_912, 1_814_073_344),
    (resnet50, 25_557_032, 25_502_912, 4_089_184_256),
    (lambda: timm.create_model("mobilenetv1_100"), 4_231_976, 4_209_088, 568_740_352),
    (mobilenet_v2, 3_504_872, 3_469_760, 300_774_272),
]


@pytest.mark.parametrize(("make", "parameters", "weights", "macs"), PUBLISHED)
def test_published_counts(make, parameters, weights, macs):
    model = make()
    frame = count_macs(model, torch.zeros(1, 3, 224, 224))
    assert count_parameters(model)[0] == parameters
    assert frame.params.sum() == weights
    assert frame.macs.sum() == macs
    assert frame.attrs["macs_attention"] == 0


def test_mobilenet_v1s_parts():
    frame = count_macs(timm.create_model("mobilenetv1_100"), torch.zeros(1, 3, 224, 224)).set_index("name")
    assert frame.params[[name for name in frame.index if name.endswith("conv_dw")]].sum() == 44_640
    assert frame.params["conv_stem"] == 864
    assert frame.params["classifier"] == 1_024_000


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 12, 5, stride=2, dilation=2, groups=3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ConvTranspose2d(6, 4, 4, stride=2),
        nn.Conv2d(6, 8, (1, 3), padding="same", bias=False),
    ],
)
def test_any_convolution_agrees_with_torchs_own_count(layer):
    images = torch.zeros(2, 6, 16, 18)
    with FlopCounterMode(display=False) as flops:
        layer(images)
    assert count_macs(layer, images).macs.sum() == flops.get_total_flops() // 2


def test_a_layer_called_twice_counts_twice_and_one_never_called_not_at_all():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(self.used(x))

    frame = count_macs(Twice(), torch.zeros(3, 5, 4)).set_index("name")
    assert frame.macs["used"] == 2 * 3 * 5 * 16 and frame.macs["idle"] == 0


def test_sparse_macs_are_dense_times_density_and_counting_changes_nothing():
    model = timm.create_model("mobilenetv1_100", num_classes=10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    count_macs(model, images)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pruner = Pruner(model, sparsity=0.8, epochs=1, schedule={"warmup": "0ep", "ramp": "1ep"})
    pruner.start_epoch(0)
    pruner.finalize()
    frame = count_macs(model, images)
    merged = pd.merge(frame, pruner.report(), on="name", suffixes=("", "_report"))
    assert (merged.sparse_macs == merged.macs * merged.density).all()
    assert 0 < frame.sparse_macs.sum() < frame.macs.sum()


def test_attention_products_have_their_own_column():
    model = timm.create_model("vit_tiny_patch16_224")
    frame = count_macs(model, torch.zeros(1, 3, 224, 224))
    tokens, width, depth = 197, 192, 12
    assert frame.attrs["macs_attention"] == depth * 2 * tokens * tokens * width


def test_projections_of_multi_head_attention_are_counted_where_they_are_multiplied():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.MultiheadAttention(12, 3, batch_first=True)
            self.cross = nn.MultiheadAttention(12, 3, kdim=8, vdim=6, batch_first=True)

        def forward(self, x, memory, values):
            x = self.same(x, x, x)[0]
            return self.cross(query=x, key=memory, value=values)[0]

    model = Two()
    frame = count_macs(model, (torch.zeros(2, 5, 12), torch.zeros(2, 7, 8), torch.zeros(2, 7, 6)))
    assert dict(zip(frame.name, frame.macs, strict=True)) == {
        "same.in_proj_weight": 3 * 2 * 5 * 12 * 12,
        "same.out_proj": 2 * 5 * 12 * 12,
        "cross.q_proj_weight": 2 * 5 * 12 * 12,
        "cross.k_proj_weight": 2 * 7 * 8 * 12,
        "cross.v_proj_weight": 2 * 7 * 6 * 12,
        "cross.out_proj": 2 * 5 * 12 * 12,
    }
    assert set(frame.type) == {"Linear"} and set(frame.name) == {layer.name for layer in find_layers(model)}
    assert frame.attrs["macs_attention"] == 2 * 2 * (5 * 5 + 5 * 7) * 12
    assert count_bytes(model).dense.sum() == 4 * frame.params.sum()


def test_the_published_total_of_a_vision_transformer():
    frame = count_macs(vit_b_16(), torch.zeros(1, 3, 224, 224))
    published = ViT_B_16_Weights.IMAGENET1K_V1.meta["_ops"]  # in thousand millions, attention included
    assert (frame.macs.sum() + frame.attrs["macs_attention"]) / 1e9 == pytest.approx(published, abs=0.005)


GOLDEN = Path(__file__).parent / "golden"
AVERAGE_POOL = 100_352  # what STR counts for the average pool, besides convolutions and the classifier


def test_the_published_total_of_strs_budget():
    budget = pd.read_csv(GOLDEN / "str_budget_resnet50_90.csv")
    frame = count_macs(resnet50(), torch.zeros(1, 3, 224, 224)).set_index("name")
    pool = budget[budget.layer.str.startswith("AP")]
    layers = budget.drop(pool.index)
    names = layers.layer.str.split(" - ").str[1]
    assert layers.weights.tolist() == frame.params[names].tolist()
    assert layers.macs.tolist() == frame.macs[names].tolist()
    assert pool.macs.item() == AVERAGE_POOL
    sparse = (frame.macs[names].to_numpy() * (1 - layers.sparsity_pct.to_numpy() / 100)).sum() + AVERAGE_POOL
    assert sparse == pytest.approx(342.7e6, abs=0.05e6)
    share = (layers.weights * layers.sparsity_pct).sum() / layers.weights.sum()
    assert share == pytest.approx(90.23, abs=0.005)


def test_bytes_with_their_indices():
    layer = nn.Linear(10, 6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.zeros(6, 10))
        layer.weight[1, :7] = 1.0
    (row,) = count_bytes(layer).itertuples()
    assert row.dense == 240
    assert row.bitmask == 7 * 4 + 8  # 60 bits
    assert row.csr == 7 * 4 + 7 * 2 + 7 * 4


def test_a_dense_layer_costs_more_with_indices_than_without():
    row = count_bytes(nn.Conv2d(8, 16, 3)).iloc[0]
    assert row.dense == 16 * 72 * 4 and row.bitmask == row.dense + 144 and row.csr == row.dense * 3 // 2 + 68
