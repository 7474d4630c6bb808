"""Experts whose weights lie in one parameter: each matrix a layer, along the right dimension, counted and decayed."""

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from pdp import Pruner, Refusal, count_macs
from pdp.experts import expert_stacks
from pdp.layers import weighted_sites
from pdp.training.optimizers import decay_groups
from pdp.training.sharding import check_layers

pytestmark = pytest.mark.language

NOW = {"name": "constant"}
SIZES = {
    **{"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"num_key_value_heads": 1, "intermediate_size": 24, "num_experts_per_tok": 2},
}
KINDS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 8, "head_dim": 8},
    "Olmoe": {"num_experts": 4, "pad_token_id": 0, "eos_token_id": 0},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},  # matrices of (in, out)
}
TOKENS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(0))


def build(kind, **more):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind], **more)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # routers of some begin as zeros, which choose by chance
        nn.init.normal_(parameter, std=0.3)
    return model


def stacks(model):
    return {name: one for name, one in model.named_parameters() if one.dim() == 3}


def pruned(model, pattern="random", **more):
    pruner = Pruner(model, pattern=pattern, epochs=1, schedule=NOW, temperature=1e-2, **more)
    pruner.start_epoch(0)
    return pruner


def mask_by_hand(weight, share, temperature=1e-2):
    """m(w) w in float64 for one matrix, the cut midway between its neighbours."""
    values = weight.detach().double().abs()
    ordered = values.flatten().sort().values
    count = int(share * values.numel() + 0.5)
    cut = (ordered[count - 1] + ordered[count]) / 2
    return torch.sigmoid((weight.double() ** 2 - cut**2) / temperature)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_masked_matrices(kind):
    model = build(kind, experts_implementation="eager").double()  # the fused product takes no doubles
    plain = copy.deepcopy(model)
    pruner = pruned(model, sparsity=0.5, allocation="uniform")
    masks = {}
    for name, parameter in stacks(plain).items():
        masks[name] = torch.stack([mask_by_hand(one, 0.5) for one in parameter])
    for layer in pruner.layers:
        if not layer.stacked:
            masks[layer.parameter] = mask_by_hand(plain.get_parameter(layer.parameter), 0.5)
    with torch.no_grad():
        dense = {name: plain.get_parameter(name).clone() for name in masks}
        for name, mask in masks.items():
            plain.get_parameter(name).mul_(mask)
    for one in (model, plain):
        one(TOKENS, labels=TOKENS).loss.backward()
    assert torch.allclose(model(TOKENS).logits, plain(TOKENS).logits, atol=1e-7)
    for name, mask in masks.items():
        slope = mask + 2 * dense[name] ** 2 / 1e-2 * mask * (1 - mask)
        torch.testing.assert_close(
            model.get_parameter(name).grad, plain.get_parameter(name).grad * slope, rtol=1e-4, atol=1e-8
        )


@pytest.mark.parametrize("kind", KINDS)
def test_each_group_of_inputs_keeps_two_of_four(kind):
    model = build(kind)
    pruner = pruned(model, "2:4")
    with torch.no_grad(), pruner.hard():
        hard = model(TOKENS).logits
    pruner.finalize()
    assert torch.equal(model(TOKENS).logits, hard)
    for name, parameter in stacks(model).items():
        # The dimension that the block sums over: by hand, from the shapes that transformers documents.
        inputs = 1 if kind == "GptOss" else 2
        groups = parameter.movedim(inputs, -1).unflatten(-1, (-1, 4))
        assert bool((groups.count_nonzero(dim=-1) == 2).all()), name


@pytest.mark.parametrize("kind", KINDS)
def test_macs_are_those_of_the_formula(kind):
    model = build(kind)
    frame = count_macs(model, TOKENS)
    config = model.config
    width, tokens = 16, TOKENS.numel()
    size = config.head_dim if kind in ("Qwen3Moe", "GptOss") else 8
    attention = width * size * (2 + 1 + 1) + 2 * size * width
    hidden = 8 if "Qwen" in kind else 24
    expert, router = 3 * width * hidden, 4 * width
    shared = 3 * width * 12 + width if kind == "Qwen2Moe" else 0
    head = width * 64
    assert frame.macs.sum() == tokens * (attention + router + 2 * expert + shared + head)
    assert frame.attrs["macs_all_experts"] == tokens * (attention + router + 4 * expert + shared + head)
    assert frame.attrs["macs_other"] == {} and frame.attrs["uncounted"] == []
    assert model.config._experts_implementation != "eager"  # as it was
    experts = frame[frame.type == "Expert"]
    assert len(experts) == 8 and (experts.params == experts.nonzero).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_dense_is_named_and_can_be_asked_for(kind):
    model = build(kind)
    pruner = pruned(model, sparsity=0.5)
    names = {layer.name for layer in pruner.layers}
    assert {f"model.layers.0.mlp.experts.down_proj.{index}" for index in range(4)} <= names
    router = "model.layers.0.mlp.router" if kind == "GptOss" else "model.layers.0.mlp.gate"
    assert "router" in pruner.skipped[router] and "head" in pruner.skipped["lm_head"]
    assert "embedding" in pruner.skipped["model.embed_tokens"]
    if kind == "Qwen2Moe":
        assert "router" in pruner.skipped["model.layers.0.mlp.shared_expert_gate"]
    pruner.remove()
    more = {layer.name for layer in pruned(model, sparsity=0.5, include=[router, "lm_head"]).layers}
    assert more == names | {router, "lm_head"}


def test_training_goes_on_where_it_was_stopped():
    def trained(model, pruner, steps):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        pruner.attach(optimizer)
        for _ in range(steps):
            model(TOKENS, labels=TOKENS).loss.backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()

    whole, pruner = build("Mixtral"), None
    pruner = pruned(whole, sparsity=0.6)
    trained(whole, pruner, 2)
    again = copy.deepcopy(build("Mixtral"))
    again.load_state_dict(whole.state_dict())
    resumed = Pruner(again, sparsity=0.6, epochs=1, schedule=NOW, temperature=1e-2)
    resumed.load_state_dict(pruner.state_dict())
    trained(whole, pruner, 2)
    trained(again, resumed, 2)
    pruner.finalize()
    resumed.finalize()
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))
    report = pruner.report()
    assert report.nonzero.sum() == report.weights.sum() - int(0.6 * report.weights.sum() + 0.5)


@pytest.mark.parametrize("method", ["gmp", "rigl", "granet", "optg", "str", "srste", "acdc"])
def test_other_methods_reach_each_matrix(method):
    model = build("GptOss")
    options = {"pattern": "2:4"} if method == "srste" else {"sparsity": 0.5}
    pruner = Pruner(model, method, epochs=4, steps_per_epoch=2, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner.attach(optimizer)
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for _ in range(2):
            loss = model(TOKENS, labels=TOKENS).loss
            (loss if pruner.penalty() is None else loss + pruner.penalty()).backward()
            pruner.after_backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    with torch.no_grad(), pruner.hard():
        hard = model(TOKENS).logits
    pruner.finalize()
    if method not in ("optg", "str"):  # whose last masks are made at the end
        assert float((model(TOKENS).logits - hard).abs().max()) < 1e-5
    zeros = {layer.name: int((layer.weight == 0).sum()) for layer in pruner.layers if layer.stacked}
    assert len(zeros) == 8 and all(zeros[layer.name] >= layer.pruned for layer in pruner.layers if layer.stacked)


def test_experts_and_routers_decay():
    model = build("GptOss")
    decayed = {id(one) for one in decay_groups(model, 0.1)[0]["params"]}
    for name, parameter in model.named_parameters():
        weighs = parameter.dim() > 1 and "bias" not in name
        assert (id(parameter) in decayed) == weighs, name


class Own(nn.Module):
    """A stranger's experts: (hidden, 2 x inner) and (inner, hidden), or the other way."""

    def __init__(self, hidden, inner, turned, fused=2):
        super().__init__()
        first, second = (fused * inner, hidden), (hidden, inner)
        self.num_experts, self.hidden_size = 3, hidden
        self.w1 = nn.Parameter(torch.randn(3, *(reversed(first) if turned else first)))
        self.w2 = nn.Parameter(torch.randn(3, *(reversed(second) if turned else second)))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sizes", [(8, 5, 2), (8, 12, 1), (6, 6, 2), (8, 4, 2), (4, 8, 2), (8, 4, 1)])
def test_a_strangers_matrices_are_told_by_their_sizes(turned, sizes):
    hidden, inner, fused = sizes
    assert set(expert_stacks(Own(hidden, inner, turned, fused)).values()) == {turned}


class Untold(nn.Module):
    """Nothing says which dimension is which."""

    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.mixed = nn.Parameter(torch.randn(3, 8, 8))
        self.out = nn.Linear(8, 4)

    def forward(self, values):
        return self.out(torch.einsum("bi,eoi->bo", values, self.mixed))


def test_experts_that_cannot_be_told_stay_dense_with_a_reason():
    pruner = pruned(Untold(), sparsity=0.5)
    assert [layer.name for layer in pruner.layers] == ["out"]
    assert "told apart" in pruner.skipped["mixed"]


@pytest.mark.parametrize("kind", ["Llama4Text", "JetMoe", "GraniteMoe", "DeepseekV3", "Phimoe", "NemotronH"])
def test_others_of_transformers_are_found(kind):
    sizes = SIZES | {"num_local_experts": 4, "n_routed_experts": 4, "first_k_dense_replace": 0, "head_dim": 8}
    if kind == "NemotronH":
        sizes |= {"layers_block_type": ["moe"], "mamba_num_heads": 2}
        sizes.pop("num_hidden_layers")
    config = getattr(transformers, f"{kind}Config")(**sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    for name, module in model.named_modules():
        for key, turned in expert_stacks(module).items():
            assert turned == (kind == "Llama4Text"), (name, key)
    experts = [name for name, what, _ in weighted_sites(model) if what == "Expert"]
    three = {name for name, one in model.named_parameters() if one.dim() == 3 and "conv" not in name}
    assert {name.rpartition(".")[0] for name in experts} == {one.removesuffix(".weight") for one in three}


def test_what_is_asked_for_must_be_there():
    with pytest.raises(Refusal, match="include=nothing"):
        pruned(build("Mixtral"), sparsity=0.5, include=["nothing"])


def test_the_tied_table_can_be_asked_for():
    model = build("Mixtral", tie_word_embeddings=True)
    assert "tied" in pruned(model, sparsity=0.5).skipped["lm_head"]
    model = build("Mixtral", tie_word_embeddings=True)
    plain = copy.deepcopy(model)
    pruner = pruned(model, sparsity=0.5, allocation="uniform", include=["model.embed_tokens", "lm_head"])
    (layer,) = [one for one in pruner.layers if one.parameter in ("lm_head.weight", "model.embed_tokens.weight")]
    assert len(layer.sites) == 2 and layer.pruned == 512
    pruner.finalize()
    kept = model.lm_head.weight != 0
    assert model.lm_head.weight is model.model.embed_tokens.weight and int(kept.sum()) == 512
    assert float(plain.lm_head.weight.abs()[~kept].max()) <= float(plain.lm_head.weight.abs()[kept].min())
    assert F.embedding(TOKENS, model.lm_head.weight).shape == (2, 6, 16)


def test_shards_of_experts_are_refused():
    with pytest.raises(Refusal, match=r"recipe.sharding=fsdp: model.layers.0.mlp.experts.gate_up_proj holds all"):
        check_layers(pruned(build("Mixtral"), sparsity=0.5))
    check_layers(pruned(build("Mixtral"), sparsity=0.5, exclude=["*.experts.*"]))
