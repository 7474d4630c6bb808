"""Heads of any attention: which rows belong to which, by hand for each layout, and what is left without some."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from pdp import Pruner
from pdp.benchmarks.model_checks import language_zoo as zoo
from pdp.benchmarks.model_checks.language import outputs
from pdp.export.slim import slim
from pdp.patterns.find import call, find_couplings, quiet
from pdp.patterns.heads import find_heads

pytestmark = pytest.mark.language

NOW = {"name": "constant"}
SIZE = 8  # of a head, of which there are four in all of the zoo's models


def found(name):
    model, example = zoo.build(name)
    with quiet(model):
        return model, example, find_heads(model, call, example, set())


def spread(units):
    return [unit for unit in units for _ in range(SIZE)]


EACH, PAIRS = [0, 1, 2, 3], [0, 0, 1, 1]
# By hand: the unit of every row of every layer that makes heads.
LAYOUTS = {
    "llama": {"q_proj": spread(PAIRS), "k_proj": spread([0, 1]), "v_proj": spread([0, 1])},
    "qwen3": {"q_proj": spread(PAIRS), "k_proj": spread([0, 1]), "v_proj": spread([0, 1])},
    "gptj": {"q_proj": spread(EACH), "k_proj": spread(EACH), "v_proj": spread(EACH)},
    "phi3": {"qkv_proj": spread([*PAIRS, 0, 1, 0, 1])},  # queries, keys, values
    "openai-gpt": {"c_attn": spread(EACH * 3)},
    "gpt_neox": {"query_key_value": spread([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])},  # of each head its three
    "falcon": {"query_key_value": spread([0] * 4 + [1] * 4)},  # of each key its queries, itself and its value
    "gpt_bigcode": {"c_attn": spread([*EACH, -1, -1])},  # one key and value for all
    "modernbert": {"Wqkv": spread(EACH * 3)},
    "deepseek_v3": {
        "q_b_proj": [unit for unit in EACH for _ in range(16)],  # with and without positions
        "kv_b_proj": [unit for unit in EACH for _ in range(16)],  # a key without positions and a value
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_of_each_head_are_those_of_the_layout(name):
    _, _, heads = found(name)
    assert len(heads) == 2
    for one in heads:
        assert one.rows == LAYOUTS[name] and one.refused is None
        assert one.units == max(max(rows) for rows in LAYOUTS[name].values()) + 1
        assert one.silent == (name != "gpt_bigcode")


def test_what_else_has_a_part_for_each_head_goes_with_it():
    _, _, heads = found("gpt_oss")
    assert heads[0].vectors == [("", "sinks", 0, PAIRS)]


def test_attentions_that_share_a_bias_go_together():
    model, example = zoo.build("t5")
    heads = [one for one in find_couplings(model, example) if one.heads]
    assert [one.name for one in heads] == [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ]
    assert all(one.refused is None and len(one.outputs) == 6 and len(one.inputs) == 2 for one in heads)
    assert [(vector.name, vector.axis) for vector in heads[0].vectors] == [
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", 1)
    ]


def test_slopes_made_from_the_number_of_heads_keep_them():
    model, example = zoo.build("bloom")
    (one, _) = [one for one in find_couplings(model, example) if one.heads]
    assert "made anew from their number" in one.refused


def test_a_key_that_all_heads_share_weighs_for_none_of_them():
    model, example = zoo.build("gpt_bigcode")
    plain = copy.deepcopy(model)
    pruner = Pruner(
        model, pattern="channel", sparsity=0.5, epochs=1, schedule=NOW, allocation="uniform", example_input=example
    )
    pruner.start_epoch(0)
    with torch.no_grad():
        for layer in pruner.layers:
            made, read = plain.get_submodule(layer.name), None
            if layer.name.endswith("c_attn"):
                size, read = SIZE, plain.get_submodule(layer.name.replace("c_attn", "c_proj"))
            else:
                size = 1
            rows = made.weight[: layer.units * size].double().reshape(layer.units, -1)
            squares = rows.square().mean(1)
            ordered = squares.sqrt().sort().values
            cut = (ordered[layer.pruned - 1] + ordered[layer.pruned]) / 2
            assert float(layer.state["cut"]) == pytest.approx(float(cut), rel=1e-6)
            mask = torch.sigmoid((squares - cut**2) / float(pruner.method.temperature_of(layer)))
            torch.testing.assert_close(layer.state["mask"].double(), mask, rtol=1e-4, atol=1e-6)
            of_rows = mask.repeat_interleave(size).float()
            made.weight[: len(of_rows)] *= of_rows[:, None]
            made.bias[: len(of_rows)] *= of_rows
            if read is not None:  # a head without queries would give the mean of all values
                read.weight *= of_rows
    torch.testing.assert_close(outputs(model, example), outputs(plain, example), rtol=1e-4, atol=1e-5)
    outputs(model, example).square().mean().backward()
    gradient = model.transformer.h[0].attn.c_attn.weight.grad
    assert bool(gradient.isfinite().all()) and bool(gradient[4 * SIZE :].any())


class Own(nn.Module):
    """A stranger's attention, with names of its own and values twice as wide as keys."""

    def __init__(self, heads=3, size=4, width=10):
        super().__init__()
        self.how_many_heads, self.size = heads, size
        self.ask, self.offer = nn.Linear(width, heads * size), nn.Linear(width, 3 * heads * size)
        self.out = nn.Linear(2 * heads * size, width)

    def forward(self, values):
        texts, tokens, _ = values.shape
        ask = self.ask(values).view(texts, tokens, self.how_many_heads, self.size)
        offer = self.offer(values).view(texts, tokens, self.how_many_heads, 3 * self.size)
        weights = torch.einsum("bthd,bshd->bhts", ask, offer[..., : self.size]).softmax(-1)
        mixed = torch.einsum("bhts,bshd->bthd", weights, offer[..., self.size :])
        return self.out(mixed.reshape(texts, tokens, -1))


Own.__name__ = "MixingAttention"


class Net(nn.Module):
    """A block of a stranger's."""

    def __init__(self):
        super().__init__()
        self.mix, self.norm = Own(), nn.LayerNorm(10)
        self.wide, self.narrow = nn.Linear(10, 20), nn.Linear(20, 10)

    def forward(self, values):
        values = self.norm(values + self.mix(values))
        return values + self.narrow(F.gelu(self.wide(values)))


def test_a_strangers_attention_is_understood():
    torch.manual_seed(0)
    model, example = Net().eval(), torch.randn(2, 5, 10)
    pruner = Pruner(
        model, pattern="channel", sparsity=0.5, epochs=1, schedule=NOW, allocation="uniform", example_input=example
    )
    assert {layer.name: layer.units for layer in pruner.layers} == {"mix.ask": 3, "wide": 20}
    pruner.start_epoch(0)
    pruner.finalize()
    slimmed = slim(model, example)
    assert slimmed.model.mix.how_many_heads == 1 and slimmed.model.mix.offer.out_features == 12
    torch.testing.assert_close(slimmed.model(example), model(example))


@pytest.mark.parametrize("name", ["llama", "phi3", "t5", "vit"])
def test_transformers_opens_the_slim_model(name, tmp_path):
    model, example = zoo.build(name)
    pruner = Pruner(
        model, pattern="channel", sparsity=0.5, epochs=1, schedule=NOW, allocation="uniform", example_input=example
    )
    pruner.start_epoch(0)
    pruner.finalize()
    slimmed = slim(model, example)
    assert slimmed.opens
    slimmed.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(outputs(again, example), outputs(slimmed.model.eval(), example))
        torch.testing.assert_close(outputs(again, example), outputs(model.eval(), example), rtol=1e-4, atol=1e-5)
    counts = {"llama": ("num_attention_heads", 2), "phi3": ("num_key_value_heads", 1), "t5": ("num_heads", 2)}
    key, count = counts.get(name, ("num_attention_heads", 2))
    assert getattr(again.config, key) == count
    hidden = again.config.d_ff if name == "t5" else again.config.intermediate_size
    assert hidden == 24


def test_layers_of_different_sizes_open_by_the_projects_own_loader_alone():
    model, example = zoo.build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[:5] = 0
        model.model.layers[0].mlp.up_proj.weight[:5] = 0
    slimmed = slim(model, example)
    assert not slimmed.opens and slimmed.model.config.intermediate_size == 48
    assert isinstance(slimmed.model, transformers.LlamaForCausalLM)
    assert slimmed.removed == {"model.layers.0.mlp.gate_proj": (5, 48)}
