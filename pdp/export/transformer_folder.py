"""Saves a transformer and its tokenizer in a folder, in the format of the transformers library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdp.errors import Stopped

_PROMPT = 8  # tokens of the prompt
_NEW = 8  # tokens generated with a cache and without, to compare


def save_transformer(model: Any, tokenizer: Any, inputs: Tensor, folder: Path) -> list[tuple[str, str]]:
    """Saves a transformer and its tokenizer as transformers does, opens them again and compares the outputs.

    `use_cache` and the tokenizer's maximum length are saved with the values from before training; a chat template is
    saved with the tokenizer, generation options with the model. Raises `Stopped` if the opened model gives other
    outputs.
    """
    write_transformer(model, tokenizer, folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        off = float((again(inputs).logits - model(inputs).logits).abs().max())
    if off:
        raise Stopped(f"the model in {folder} differs from the run's by {off:.2g}: not to be used")
    written = [("opens with", f"transformers.{type(model).__name__}.from_pretrained('{folder}')"), ("difference", "0")]
    if hasattr(again, "lm_head") and again.can_generate():
        written.append(("generates with a cache as without", "yes" if _same_with_cache(again, inputs) else "NO"))
    return written


def write_transformer(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Writes both, with `use_cache` and the tokenizer's longest text as they were; `options` of `save_pretrained`."""
    with _as_it_was(model, tokenizer):
        model.save_pretrained(folder, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


@contextmanager
def _as_it_was(model: Any, tokenizer: Any) -> Iterator[None]:
    """While this context is open, settings that training has changed have their original values."""
    shapes = [one for one in (model.config, getattr(model, "generation_config", None)) if one is not None]
    held = [(one, "use_cache", getattr(one, "use_cache", None)) for one in shapes if hasattr(one, "use_cache")]
    own = getattr(model, "own_use_cache", None)
    if tokenizer is not None and hasattr(tokenizer, "own_max_length"):
        held.append((tokenizer, "model_max_length", tokenizer.model_max_length))
        tokenizer.model_max_length = tokenizer.own_max_length
    for one in shapes if own is not None else ():
        if hasattr(one, "use_cache"):
            one.use_cache = own
    try:
        yield
    finally:
        for one, key, value in held:
            setattr(one, key, value)


@torch.no_grad()
def _same_with_cache(model: Any, inputs: Tensor) -> bool:
    """Whether greedy decoding gives the same tokens with a cache and without."""
    prompt = inputs[:1, :_PROMPT]
    room = getattr(model.config, "max_position_embeddings", None)
    new = _NEW if room is None else max(1, min(_NEW, room - prompt.shape[1]))
    words = {"max_new_tokens": new, "do_sample": False, "num_beams": 1, "attention_mask": torch.ones_like(prompt)}
    texts = [model.generate(prompt, use_cache=cache, **words) for cache in (True, False)]
    return bool(torch.equal(*texts))
