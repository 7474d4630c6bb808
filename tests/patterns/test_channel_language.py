"""Channels of language models: hidden units and heads, in Hugging Face's `Conv1D` and in linear layers."""

import copy
import importlib.util

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.pytorch_utils import Conv1D

from pdp import Pruner, count_macs
from pdp.export.compare import difference
from pdp.export.inputs import Logits
from pdp.export.program import save_program
from pdp.export.slim import slim
from pdp.export.slim_folder import save_slim
from pdp.export.slim_loader import load_slim
from pdp.patterns.find import find_couplings

pytestmark = pytest.mark.language

NOW = {"warmup": "0ep", "ramp": "1ep"}
TOKENS = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=4)).eval()


def bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **sizes)).eval()


LAYERS = {
    gpt2: ("transformer.h.{}.attn.c_attn", "transformer.h.{}.mlp.c_fc"),
    bert: ("bert.encoder.layer.{}.attention.self.query", "bert.encoder.layer.{}.intermediate.dense"),
}


def make(model, method="pdp", **values):
    values = {"sparsity": 0.4, "epochs": 2, "schedule": NOW, "allocation": "uniform"} | values
    exclude = ["*pooler*"] if hasattr(model, "bert") else []
    return Pruner(model, method, "channel", example_input={"input_ids": TOKENS[:1]}, exclude=exclude, **values)


def train(model, pruner, epochs):
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    pruner.attach(optimizer)
    for epoch in epochs:
        pruner.start_epoch(epoch)
        for _ in range(2):
            model(TOKENS).logits.square().mean().backward()
            assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)
            pruner.after_backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("method", ["pdp", "gmp", "oneshot", "sfp"])
@pytest.mark.parametrize("build", [gpt2, bert])
def test_without_its_zero_heads_and_hidden_units_the_model_is_the_same(build, method):
    model = build()
    pruner = make(model, method)
    heads, hidden = LAYERS[build]
    units = {name.format(block): count for block in (0, 1) for name, count in ((heads, 4), (hidden, 96))}
    assert {layer.name: layer.units for layer in pruner.layers} == units
    train(model, pruner, range(2))
    pruner.finalize()
    slimmed = slim(model, {"input_ids": TOKENS[:1]})
    assert {name: units - gone for name, (gone, units) in slimmed.removed.items()} == {
        name: units[name] - layer.pruned for name, layer in zip(units, pruner.layers, strict=True)
    }
    assert [layer.pruned for layer in pruner.layers] == [2, 38, 2, 38]
    dense = sum(one.numel() for one in model.parameters())
    assert sum(one.numel() for one in slimmed.model.parameters()) < 0.9 * dense
    assert difference(*(Logits(one, ("input_ids",)) for one in (model, slimmed.model)), TOKENS) < 1e-5
    slimmed.model(TOKENS).logits.sum().backward()  # goes on training


@pytest.mark.parametrize("build", [gpt2, bert])
def test_counts_of_the_hard_model_are_those_of_the_slim_one(build):
    model = build()
    pruner = make(model)
    train(model, pruner, range(2))
    pruner.finalize()
    example = {"input_ids": TOKENS[:1]}
    slimmed = slim(model, example)
    masked, smaller = count_macs(model, example), count_macs(slimmed.model, example)
    assert masked.sparse_macs.sum() == smaller.macs.sum() < masked.macs.sum()


def test_finding_couplings_leaves_the_layers_as_they_are():
    model = gpt2()
    before, state = list(model.modules()), copy.deepcopy(model.state_dict())
    output = model(TOKENS).logits
    couplings = find_couplings(model, {"input_ids": TOKENS[:1]})
    assert all(one is other for one, other in zip(before, model.modules(), strict=True))
    assert list(state) == list(model.state_dict()) and torch.equal(model(TOKENS).logits, output)
    parts = [part for one in couplings for part in (*one.outputs, *one.inputs)]
    assert {type(part.module) for part in parts} == {Conv1D, nn.Linear}  # the last of which ties the embedding


class Turned(nn.Module):
    """Six inputs, eleven hidden units, four outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Conv1D(11, 6), Conv1D(4, 11)
        nn.init.normal_(self.first.bias)

    def forward(self, inputs):
        return self.second(self.first(inputs).relu())


@pytest.mark.parametrize("alone", [False, True])
def test_outputs_and_gradients_are_those_of_the_formula_in_float64(alone):
    torch.manual_seed(0)
    model = Turned()
    nn.init.normal_(model.first.weight)
    inputs = torch.randn(5, 6)
    pruner = Pruner(
        model, pattern="channel", sparsity=0.5, epochs=2, schedule=NOW, temperature=0.5, example_input=inputs[:1]
    )
    pruner.start_epoch(0)
    (layer,) = pruner.layers
    assert layer.name == "first" and layer.units == 11 and layer.pruned == 6
    weight, bias = (one.detach().double().requires_grad_() for one in model.first.parameters())
    square = weight.square().mean(0)
    ordered = square.detach().sqrt().sort().values
    cut = (ordered[5] + ordered[6]) / 2
    assert float(layer.state["cut"]) == pytest.approx(float(cut), rel=1e-6)
    mask = torch.sigmoid((square - cut**2) / 0.5)
    expected = (inputs.double() @ (weight * mask) + bias * mask).relu() @ model.second.weight.detach().double()
    expected.square().sum().backward()
    # By itself a layer's forward is masked as well, without what a forward of the whole model shares.
    output = model.second(model.first(inputs).relu()) if alone else model(inputs)
    output.square().sum().backward()
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.first.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.first.bias.grad.double(), bias.grad, rtol=1e-4, atol=1e-5)
    assert model.first.weight.grad.is_contiguous()
    pruner.finalize()
    kept = (square.sqrt() >= cut).detach()
    assert (model.first.weight != 0).any(0).tolist() == (model.second.weight != 0).any(1).tolist() == kept.tolist()


@pytest.mark.parametrize("build", [gpt2, bert])
def test_an_exported_slim_model_opens_by_itself(build, tmp_path):
    model = build()
    pruner = make(model)
    train(model, pruner, range(2))
    pruner.finalize()
    smaller = Logits(save_slim(model, TOKENS[:1], tmp_path, {}), ("input_ids",))
    spec = importlib.util.spec_from_file_location("load_slim", tmp_path / "load_slim.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    loaded = loader.load_slim(build(), tmp_path).eval()
    assert difference(smaller, Logits(loaded, ("input_ids",)), TOKENS) == 0
    if build is gpt2:
        assert loaded.lm_head.weight is loaded.transformer.wte.weight
    other = build()
    other.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="another model: extra.weight, extra.bias"):
        loader.load_slim(other, tmp_path)
    save_program(smaller, [TOKENS], tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(program(TOKENS[:, :5]), smaller(TOKENS[:, :5]))  # another length


def test_the_slim_model_loads_into_no_other_and_leaves_missing_biases_alone(tmp_path):
    def model(bias):
        return nn.Sequential(nn.Linear(3, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2))

    dense = model(True)
    with torch.no_grad():
        dense[0].weight[1] = dense[0].bias[1] = 0
    save_slim(dense, torch.zeros(1, 3), tmp_path, {})
    loaded = load_slim(model(True), tmp_path)
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(loaded(inputs), dense(inputs))
    assert loaded[2].bias is None and loaded[0].out_features == 3
    other = model(False)
    with pytest.raises(ValueError, match="another model: 0.bias"):
        load_slim(other, tmp_path)
    assert other[0].out_features == 4 and other[0].bias is None


def test_cross_attention_is_followed():
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=1, n_head=4, add_cross_attention=True)
    example = {"input_ids": TOKENS[:1], "encoder_hidden_states": torch.randn(1, 4, 24)}
    pruner = Pruner(
        GPT2LMHeadModel(config), pattern="channel", sparsity=0.4, epochs=2, schedule=NOW, example_input=example
    )
    assert "transformer.h.0.mlp.c_fc" in [layer.name for layer in pruner.layers]
