"""A run's transformer in a folder: what its checkpoint said of generating is there again, and generating is the same."""

import json

import pytest
import torch
import transformers

from pdp.harness import run
from pdp.tasks.text_tokenizer import train_byte_pairs
from pdp.training.export_run import ExportedRun, export

pytestmark = [pytest.mark.language, pytest.mark.slow]

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
KINDS = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
}


@pytest.mark.parametrize(("kind", "cached"), [("llama", True), ("gpt2", False)])
def test_a_folder_generates_as_its_checkpoint_did(tmp_path, monkeypatch, kind, cached):
    monkeypatch.chdir(tmp_path)
    tokenizer = train_byte_pairs(["words of some text, over and over"] * 9, 300)
    tokenizer.chat_template, tokenizer.model_max_length = TEMPLATE, 77
    shape = transformers.AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), max_position_embeddings=64, use_cache=cached, bos_token_id=0, eos_token_id=0,
        **KINDS[kind],
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(shape)
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    model.generation_config.max_new_tokens = 5
    model.save_pretrained("checkpoint")
    tokenizer.save_pretrained("checkpoint")
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("words of some text, over and over\n" * 40)
    made = run(
        ["model=huggingface", "model.name=x", "model.pretrained=checkpoint", "data=text", "data.root=.",
         "data.context=32", "method=oneshot", "sparsity=0.5", "recipe.epochs=0"]
    )  # fmt: skip
    (path,) = (tmp_path / "results" / "runs").glob("*/seed0")
    assert made.metrics["bits_per_byte"] > 0
    told = dict(export(ExportedRun(path), "safetensors", tmp_path / "out"))
    assert told["generates with a cache as without"] == "yes"
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["use_cache"] is cached
    options = transformers.GenerationConfig.from_pretrained("out")
    assert (options.temperature, options.do_sample, options.max_new_tokens) == (0.7, True, 5)
    again = transformers.AutoTokenizer.from_pretrained("out")
    assert again.model_max_length == 77
    shown = again.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert shown == "<user>hello"
    opened = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    assert opened.config.use_cache is cached
    zeros = [(one.weight == 0).float().mean() for one in opened.modules() if type(one).__name__ in ("Linear", "Conv1D")]
    assert max(zeros) > 0.3
    prompt = torch.tensor([[5, 6, 7]])
    texts = [
        opened.generate(
            prompt, use_cache=one, do_sample=False, max_new_tokens=12, attention_mask=torch.ones_like(prompt)
        )
        for one in (True, False)
    ]
    assert torch.equal(*texts)
