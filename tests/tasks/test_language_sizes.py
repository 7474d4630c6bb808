"""Sizes and arguments of transformers from the command line: wrong ones are named, in one line."""

import pytest

from pdp.config.compose import compose
from pdp.config.groups import CONF
from pdp.errors import Refusal
from pdp.tasks.language_models import build_transformer


def built(*words):
    config = compose(["data=docstrings", "sparsity=0.5", *words])
    return build_transformer(config, None, None, None)[0]


@pytest.mark.parametrize(
    ("model", "word", "said"),
    [
        ("llama_tiny", "model.sizes.hiden_size=64", "did you mean model.sizes.hidden_size"),
        ("gpt2_tiny", "model.arguments.n_embed=64", "did you mean model.arguments.n_embd"),
        ("llama_tiny", "model.sizes.hidden_size=30", "hidden_size.: 30"),
        ("llama_tiny", "model.sizes.hidden_size=abc", "abc"),
        ("gpt2_tiny", "model.sizes.n_head=3.5", "3.5"),
        ("llama_tiny", "model.sizes.num_key_value_heads=3", "does not divide the 4 query heads"),
        ("llama_tiny", "model.sizes.intermediate_size=0", "at least 1"),
    ],
)
def test_a_size_that_is_unknown_or_does_not_fit_is_refused(model, word, said):
    with pytest.raises(Refusal, match=said):
        built(f"model={model}", word)


def test_sizes_that_are_known_are_the_models():
    model = built("model=llama_tiny", "model.sizes.head_dim=12", "model.sizes.num_key_value_heads=1")
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (12, 128)
    # GPT-2 takes the usual names for its own too.
    assert built("model=gpt2_tiny", "model.arguments.num_hidden_layers=1").config.n_layer == 1


@pytest.mark.parametrize("name", sorted(one.stem for one in (CONF / "model").glob("gpt2_[mt]*.yaml")))
def test_own_sizes_are_known(name):
    assert built(f"model={name}", "model.pretrained=false") is not None
