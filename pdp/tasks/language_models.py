"""Transformers by architecture, by their name on the hub or from a folder, random or pretrained; and what to prune."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.layers import is_weighted
from pdp.tasks.hub import cache_alone, limited_patience, reachable
from pdp.tasks.language_heads import align_head, complete_encoder_decoder
from pdp.tasks.language_sizes import check_known, check_sizes
from pdp.tasks.text_tokenizer import size_of
from pdp.wording import one_line

_RESERVED = ("num_labels", "id2label", "label2id", "vocab_size", "problem_type")


def checkpoint_of(config: Config) -> str | None:
    """The source of the pretrained weights, a folder or a name on the hub; None for a random model."""
    pretrained = config.model.pretrained
    if pretrained.lower() == "false":
        return None
    return (config.model.hub or config.model.name) if pretrained.lower() == "true" else pretrained


def build_transformer(
    config: Config,
    checkpoint: str | None,
    tokenizer: Any,
    labels: tuple[str, ...] | None,
    regression: bool = False,
    weights: bool = True,
) -> tuple[Any, list[str]]:
    """The model, fp32 on the CPU, and notes; `labels` are a classifier's classes, None for a causal language model.

    `checkpoint` determines the sizes and, with `weights`, the weights; without it the sizes are the configuration's.
    Raises `Refusal`.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    kind = transformers.AutoModelForCausalLM if labels is None else transformers.AutoModelForSequenceClassification
    values = dict(config.model.arguments)
    reserved = sorted(set(_RESERVED) & values.keys())
    if reserved:
        raise Refusal(f"model.arguments.{reserved[0]} is set by the data: remove it")
    with _refusals(config, checkpoint):
        shape = _configuration(config, checkpoint, values)
        theirs = dict(getattr(shape, "id2label", None) or {})
        if labels is not None:
            count = 1 if regression else len(labels)
            shape.id2label = {number: labels[number] if labels else "score" for number in range(count)}
            shape.label2id = {name: number for number, name in shape.id2label.items()}
            shape.problem_type = "regression" if regression else "single_label_classification"
        own_use_cache = getattr(shape, "use_cache", None)
        if labels is None:
            shape.use_cache = False  # exports restore it
        if tokenizer is not None and tokenizer.pad_token_id is not None:
            shape.pad_token_id = tokenizer.pad_token_id
        notes: list[str] = []
        if checkpoint is None:
            if tokenizer is None:
                shape.vocab_size = config.data.vocabulary  # type: ignore[attr-defined]
            else:
                shape.vocab_size = size_of(tokenizer)
                for key in ("bos_token_id", "eos_token_id"):
                    setattr(shape, key, getattr(tokenizer, key, None))
        if labels is not None and getattr(shape, "is_encoder_decoder", False):
            complete_encoder_decoder(shape, tokenizer)
        if checkpoint is None or not weights:
            model: Any = kind.from_config(shape, trust_remote_code=False).float()
        else:
            model, new = _load(kind, checkpoint, shape)
            notes = [f"not in the checkpoint, so it starts random: {', '.join(new)}"] if new else []
            if labels is not None and not regression:
                notes += align_head(model, theirs, labels, set(new), checkpoint, config.model.head)
    embedded = model.get_input_embeddings().num_embeddings
    if tokenizer is not None and size_of(tokenizer) > embedded:
        of = "data.tokenizer" if config.data.tokenizer is not None else f"the tokenizer in {checkpoint}"  # type: ignore[attr-defined]
        raise Refusal(
            f"{of} numbers {size_of(tokenizer):,} tokens, the checkpoint {checkpoint} embeds {embedded:,}: give "
            "data.tokenizer=<the one that it was trained with>, or null for the one in its folder"
        )
    model.own_use_cache = own_use_cache
    if checkpoint is not None and not weights:
        _take_generation_options(model, checkpoint)
    if config.recipe.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model.train(), notes


def _configuration(config: Config, checkpoint: str | None, values: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    model = config.model
    if checkpoint is None and model.architecture is not None:
        usual = AutoConfig.for_model(model.architecture)
        check_known("model.sizes", model.sizes, usual, model.name)
        check_known("model.arguments", values, usual, model.name)
        shape = AutoConfig.for_model(model.architecture, **{**model.sizes, **values})
        check_sizes(model.sizes, shape)
        return shape
    source = checkpoint or model.hub or model.name
    offline = not reachable()
    with limited_patience(), cache_alone(offline):
        shape = AutoConfig.from_pretrained(source, local_files_only=offline, trust_remote_code=False, **values)
    check_known("model.arguments", values, shape, model.name)
    return shape


def _load(kind: Any, checkpoint: str, shape: Any) -> tuple[Any, list[str]]:
    """The model, and the names of the weights that the checkpoint lacks."""
    offline = not reachable()
    with limited_patience(), cache_alone(offline):
        model, told = kind.from_pretrained(
            checkpoint,
            config=shape,
            dtype=torch.float32,
            local_files_only=offline,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    prefix = f"{model.base_model_prefix}."
    other = sorted(str(one[0] if isinstance(one, tuple) else one) for one in told["mismatched_keys"])
    new = sorted({str(one) for one in told["missing_keys"]} | set(other))
    wrong = [name for name in new if name.startswith(prefix) and "pooler" not in name and "position_ids" not in name]
    if wrong:
        raise Refusal(
            f"model.pretrained={checkpoint} does not fit {type(model).__name__}: {len(wrong)} tensors of the body are "
            f"missing or of another shape, the first {wrong[0]}; remove model.arguments or give another checkpoint"
        )
    return model, new


def _take_generation_options(model: Any, checkpoint: str) -> None:
    """Gives a model with other weights the checkpoint's generation options; it keeps its own if there are none."""
    from transformers import GenerationConfig

    offline = not reachable()
    if model.can_generate():
        # If they are missing or in an unknown format, the model keeps its own.
        with suppress(OSError, ValueError, TypeError), limited_patience(), cache_alone(offline):
            model.generation_config = GenerationConfig.from_pretrained(checkpoint, local_files_only=offline)


@contextmanager
def _refusals(config: Config, checkpoint: str | None) -> Iterator[None]:
    """Inside this context, errors of transformers about files and arguments become a `Refusal`."""
    from huggingface_hub import errors

    strict: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)  # what newer configurations raise
    try:
        yield
    except Refusal:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, strict) as error:
        reason = f"{type(error).__name__}: {one_line(error)[:160]}"
        if checkpoint is None and config.model.architecture is not None:
            values = {**config.model.sizes, **config.model.arguments}
            raise Refusal(
                f"model.sizes and model.arguments: {values} does not suit {config.model.name} ({reason}); change it"
            ) from None
        wanted = checkpoint or config.model.name
        raise Refusal(
            f"model.pretrained={config.model.pretrained}: {wanted} could not be had ({reason}); without network give "
            "model.pretrained=<a folder that save_pretrained wrote>, or model.pretrained=false with model=bert_base"
        ) from None


def outside_the_blocks(model: nn.Module) -> tuple[str, ...]:
    """The weighted layers outside of the stack of blocks: head, pooler, projections of embeddings."""
    stacks = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return tuple(
        name
        for name, module in model.named_modules()
        if is_weighted(module) and not any(name.startswith(f"{stack}.") for stack in stacks)
    )


def takes(model: Any, name: str) -> bool:
    """Whether the model's forward has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def bare(model: Any) -> Any:
    """The transformer itself, without anything that wraps it for training."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@contextmanager
def showing_attention(model: Any) -> Iterator[None]:
    """Inside this context, attention uses the implementation that returns its weights."""
    shape = bare(model).config
    before = shape._attn_implementation
    shape._attn_implementation = "eager"
    try:
        yield
    finally:
        shape._attn_implementation = before
