"""One of several processes that prune tiny language models in parts; run by test_sharding.py."""

import os

import torch
import torch.distributed as dist
from torch import nn

from pdp import Pruner
from pdp.sharded import whole

CASES = [
    ("llama", "pdp", "random"),
    ("gpt2", "pdp", "random"),
    ("llama", "pdp", "2:4"),
    ("gpt2", "pdp", "2:4"),
    ("gpt2", "gmp", "random"),
    ("llama", "oneshot", "random"),
    ("llama", "acdc", "4x3"),
    ("llama", "pdp", "channel"),
    ("gpt2", "pdp", "channel"),
    ("gpt2", "pdp", "4x3"),
]


def made(name: str) -> nn.Module:
    """Two blocks, float64; embeddings are tied in GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    shared = {"vocab_size": 37, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    if name == "gpt2":
        shape = GPT2Config(
            n_embd=12, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **shared
        )
        return GPT2LMHeadModel(shape).double()
    shape = LlamaConfig(hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=1, max_position_embeddings=16, **shared)  # fmt: skip
    return LlamaForCausalLM(shape).double()


def train(rank: int, world: int, sharded: bool, name: str, method: str, pattern: str) -> tuple[nn.Module, Pruner]:
    """Four epochs; every process takes its part of the same global batch."""
    from accelerate import Accelerator

    from pdp.training.sharding import shard

    model = made(name)
    example = {"input_ids": torch.zeros(1, 8, dtype=torch.int64)} if pattern == "channel" else None
    pruner = Pruner(model, method, pattern, None if pattern == "2:4" else 0.5, 4, own_exclude=["lm_head"],
                    schedule={"name": "linear", "warmup": "1ep", "ramp": "2ep"}, example_input=example)  # fmt: skip
    if sharded:
        shard(model, Accelerator(cpu=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    pruner.attach(optimizer)
    draw = torch.Generator().manual_seed(7)
    for epoch in range(4):
        pruner.start_epoch(epoch)
        for _ in range(2):
            ids = torch.randint(0, 37, (4, 8), generator=draw)[rank * 4 // world : (rank + 1) * 4 // world]
            logits = model(input_ids=ids).logits[:, :-1]
            nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            pruner.after_backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    return model, pruner


def what_is_left(model: nn.Module, pruner: Pruner) -> dict:
    """States, masks, counts, the soft and the hard weights, all whole."""
    soft = {name: whole(value).clone() for name, value in model.state_dict().items()}
    left = {
        "soft": soft,
        "state": {layer.name: {key: value.clone() for key, value in layer.state.items()} for layer in pruner.layers},
        "keep": {layer.name: pruner.method.keep(layer).clone() for layer in pruner.layers},
        "final": {layer.name: layer.final for layer in pruner.layers},
        "pruned": {layer.name: layer.pruned for layer in pruner.layers},
    }
    pruner.finalize()
    report = pruner.report()
    left["nonzero"] = dict(zip(report.name, report.nonzero.tolist(), strict=True))
    left["hard"] = {name: whole(value).clone() for name, value in model.state_dict().items()}
    return left


def main(folder: str, method: str = "") -> None:
    """Trains as one rank and saves what it has; only the cases of `method` where one is given."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    left = {" ".join(case): what_is_left(*train(rank, world, True, *case)) for case in CASES if method in ("", case[1])}
    torch.save(left, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()
