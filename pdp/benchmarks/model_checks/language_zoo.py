"""Small transformers with random weights, one of each architecture, built from configurations without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel  # noqa: F401  # loaded once for all processes that check one

_VOCABULARY = 96
_SIZES = {
    **{"vocab_size": _VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_GROUPED = {"num_key_value_heads": 2}
_EXPERTS = _GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_IMAGE = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

# By architecture: the kind of model, and sizes that differ from the common ones.
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "rotary_dim": 4, "n_positions": 64},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "rotary_dim": 4, "n_positions": 64},
    "gpt_bigcode": {"multi_query": True},
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "xglm": {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48},
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "ministral": _GROUPED | {"head_dim": 8},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gemma": _GROUPED | {"head_dim": 8},
    "gemma2": _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "multi_query": False, "alibi": False},
    "falcon/multi_query": {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "stablelm": _GROUPED,
    "cohere": _GROUPED,
    "cohere2": _GROUPED,
    "granite": _GROUPED,
    "olmo": _GROUPED,
    "olmo2": _GROUPED,
    "olmo3": _GROUPED,
    "starcoder2": _GROUPED,
    "glm": _GROUPED | {"head_dim": 8},
    "glm4": _GROUPED | {"head_dim": 8},
    "nemotron": _GROUPED,
    "smollm3": _GROUPED,
    "exaone4": _GROUPED,
    "ernie4_5": _GROUPED,
    "helium": _GROUPED | {"head_dim": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64},
    "biogpt": {},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "persimmon": {},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    "jamba": _EXPERTS | {"num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "recurrent_gemma": {"num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3},
    "mixtral": _EXPERTS | {"num_local_experts": 4},
    "qwen2_moe": _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3_moe": _EXPERTS | {"num_experts": 4, "head_dim": 8},
    "olmoe": _EXPERTS | {"num_experts": 4},
    "gpt_oss": _EXPERTS | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 4},
    "deepseek_v2": _LATENT | _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                         "topk_method": "greedy", "num_key_value_heads": 4},
    "deepseek_v3": _LATENT | _EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                         "n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
    "granitemoe": _EXPERTS | {"num_local_experts": 4},
    "phimoe": _EXPERTS | {"num_local_experts": 4},
    "glm4_moe": _EXPERTS | {"n_routed_experts": 4, "first_k_dense_replace": 1, "head_dim": 8},
    "jetmoe": _EXPERTS | {"num_local_experts": 4, "kv_channels": 8},
    "dbrx": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
             "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}},
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "camembert": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 24},
    "albert": {"embedding_size": 24},
    "mpnet": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "longformer": {"attention_window": 4},
    "big_bird": {"attention_type": "original_full"},
    "funnel": {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]},
    "squeezebert": {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1,
                    "intermediate_groups": 2, "output_groups": 2},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "convbert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "nystromformer": {"num_landmarks": 2, "segment_means_seq_len": 12},
    "fnet": {},
    "megatron-bert": {},
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 24},
    "roformer": {},
    "esm": {"position_embedding_type": "rotary", "mask_token_id": 3},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": _VOCABULARY},
    "nomic_bert": {},
}  # fmt: skip
IMAGES: dict[str, dict[str, Any]] = {
    "vit": _IMAGE,
    "deit": _IMAGE,
    "beit": _IMAGE,
    "dinov2": _IMAGE | {"mlp_ratio": 2},
    "swin": _IMAGE | {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 2},
    "clip_vision_model": _IMAGE,
    "siglip_vision_model": _IMAGE,
}
PAIRS: dict[str, dict[str, Any]] = {  # encoder-decoders
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "mt5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "switch_transformers": {
        **{"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "num_experts": 4},
        **{"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_start_token_id": 0},
    },
    "bart": {
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2},
    },
    "pegasus": {
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 0},
    },
    "marian": {
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 0},
    },
}
SOUNDS: dict[str, dict[str, Any]] = {
    "whisper": {
        **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "num_mel_bins": 8},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 8},
        **{"max_target_positions": 16, "decoder_start_token_id": 1, "suppress_tokens": None},
    },
}
_LACKS = {  # common sizes that a configuration does not accept
    "funnel": ("num_hidden_layers",),
    "xlnet": ("max_position_embeddings",),
    "swin": ("num_hidden_layers", "hidden_size", "num_attention_heads"),
}
_KINDS = (DECODERS, ENCODERS, IMAGES, PAIRS, SOUNDS)


def names() -> list[str]:
    """Every architecture, sorted by kind."""
    return [name for kind in _KINDS for name in kind]


def kind_of(name: str) -> str:
    """The kind: decoder, encoder, images, pair or sounds."""
    words = ("decoder", "encoder", "images", "pair", "sounds")
    return next(word for word, kind in zip(words, _KINDS, strict=True) if name in kind)


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model in evaluation mode, with weights that let no signal vanish, and two examples as keyword arguments."""
    transformers.logging.set_verbosity_error()
    kind = kind_of(name)
    own = next(table[name] for table in _KINDS if name in table)
    sizes = {key: value for key, value in _SIZES.items() if key not in _LACKS.get(name, ())}
    config = transformers.AutoConfig.for_model(name.partition("/")[0], **{**sizes, **own})
    torch.manual_seed(0)
    makers: dict[str, Callable[[Any], Any]] = {
        "decoder": transformers.AutoModelForCausalLM.from_config,
        "encoder": transformers.AutoModelForSequenceClassification.from_config,
        "pair": transformers.AutoModelForSeq2SeqLM.from_config,
        "images": transformers.AutoModel.from_config,
        "sounds": transformers.AutoModelForSpeechSeq2Seq.from_config,
    }
    try:
        model = makers[kind](config).float().eval()
    except ValueError:
        if kind != "encoder":
            raise
        model = transformers.AutoModel.from_config(config).float().eval()  # this architecture has no classifier
    _draw(model)
    return model, examples(model, kind, config)


@torch.no_grad()
def _draw(model: nn.Module) -> None:
    """Replaces zeros and ones by random numbers, so that no norm, bias or router hides a mistake."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # computed positions, which a saved folder does not contain
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise * 0.8 * parameter.shape[-1] ** -0.5)
        elif not any(word in name for word in ("A_log", "dt_bias", "recurrent_param")):
            parameter.add_(noise * 0.1)


def examples(model: Any, kind: str, config: Any) -> dict[str, Tensor]:
    """Two inputs for a kind of model."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, _VOCABULARY, (2, 12), generator=generator)
    if kind == "images":
        size = config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}
    if kind == "pair":
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :7].flip(1)}
    if kind == "sounds":
        features = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        return {"input_features": features, "decoder_input_ids": tokens[:, :7]}
    return {"input_ids": tokens}
