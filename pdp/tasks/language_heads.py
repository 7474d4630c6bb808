"""What a transformer needs for a task on texts: a head for the data's classes, positions, and an end-of-text token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pdp.errors import Refusal
from pdp.wording import one_line

_TABLES = ("position_embeddings", "embed_positions", "wpe", "position_embedding", "positions_embed")
_SHOWN = 5  # most class names in a refusal


def align_head(
    model: Any, theirs: Mapping[int, str], ours: tuple[str, ...], new: set[str], checkpoint: str, head: str
) -> list[str]:
    """Reorders the rows of a checkpoint's head to the order of the data's classes, by their names; returns notes.

    `theirs` is the checkpoint's id2label, `new` the names of the weights that it lacks, `head` the option model.head.
    The head is left as it is if it starts random, if its classes have no names, or if the data's classes are numbers.
    Raises `Refusal` if the names differ.
    """
    layers = _head(model, len(ours))
    if not layers or any(f"{name}.weight" in new for name in layers):
        return []
    if head == "new":
        for name in layers:
            _restart(model, model.get_submodule(name))
        return [f"model.head=new, so it starts random: {', '.join(layers)}"]
    names = [_plain(theirs[number]) for number in sorted(theirs)] if len(theirs) == len(ours) else []
    wanted = [_plain(one) for one in ours]
    positions = [str(number) for number in range(len(ours))]
    if names == wanted or not names or all(re.fullmatch(r"label_?\d+", one) for one in names) or wanted == positions:
        return []
    if sorted(names) != sorted(wanted) or len(set(names)) < len(names):
        raise Refusal(
            f"model.pretrained={checkpoint} has a head for {_listed(theirs[one] for one in sorted(theirs))}, the "
            f"data's classes are {_listed(ours)}: give model.head=new for a random head, or data of its classes"
        )
    order = torch.tensor([names.index(one) for one in wanted])
    with torch.no_grad():
        for name in layers:
            module = model.get_submodule(name)
            module.weight.copy_(module.weight[order])
            if module.bias is not None:
                module.bias.copy_(module.bias[order])
    return [f"the checkpoint's classes are {_listed(theirs[one] for one in sorted(theirs))}, put in the data's order"]


def _head(model: Any, classes: int) -> list[str]:
    """The layers outside of the transformer's body with one output per class."""
    body = f"{model.base_model_prefix}."
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes and not name.startswith(body)
    ][-1:]


def rows_of_classes(model: Any, classes: int) -> list[str]:
    """The parameters of a classifier that have a row for each class."""
    own = dict(model.named_parameters())
    names = [f"{layer}.{kind}" for layer in _head(model, classes) for kind in ("weight", "bias")]
    return [name for name in names if name in own]


def outside_the_body(model: Any) -> tuple[str, ...]:
    """The model's own parts that are not its body: its head."""
    return tuple(name for name, _ in model.named_children() if name != model.base_model_prefix)


def _restart(model: Any, module: nn.Linear) -> None:
    deviation = getattr(model.config, "initializer_range", None) or 0.02
    nn.init.normal_(module.weight, std=deviation)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).casefold()).strip("_") or str(name)


def _listed(names: Any) -> str:
    shown = [one_line(str(name))[:40] for name in names]
    return ", ".join(shown[:_SHOWN] + ["..."] * (len(shown) > _SHOWN))


def complete_encoder_decoder(shape: Any, tokenizer: Any) -> None:
    """Completes the configuration of an encoder-decoder classifier; raises `Refusal`.

    Such a model reads the class at the end of a text, so every text must contain the end-of-text token, as the
    tokenizer adds it.
    """
    if getattr(shape, "decoder_start_token_id", None) is None:
        shape.decoder_start_token_id = shape.pad_token_id if shape.pad_token_id is not None else 0
    if tokenizer is None:
        return
    ending = tokenizer("a")["input_ids"]
    if not ending or ending[-1] not in tokenizer.all_special_ids:
        raise Refusal(
            f"a classifier of an encoder and a decoder ({shape.model_type}) reads its class at the end of a text, and "
            "the tokenizer adds no token there: give data.tokenizer=<one that ends texts with eos>"
        )
    shape.eos_token_id = ending[-1]  # for example [SEP] of a WordPiece tokenizer


def positions(model: Any) -> int | None:
    """The longest text that the model has positions for; None if there is no limit.

    This is less than the size of the table if some rows are used for padding (RoBERTa and MPNet count positions from
    after the padding index) or as an offset (BART, OPT).
    """
    value = getattr(model.config, "max_position_embeddings", None)
    bounds = [value] if isinstance(value, int) and value > 0 else []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES:
            taken = module.padding_idx + 1 if module.padding_idx is not None else 0
            bounds.append(module.num_embeddings - max(taken, int(getattr(module, "offset", 0) or 0)))
    return min(bounds, default=None)
