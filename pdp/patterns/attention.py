"""The attentions whose heads can be pruned: timm's, GPT-2's and BERT's, recognised by their modules' attributes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pdp.layers import is_conv1d

# The names of the attributes for the number of heads and for their total width.
_COUNTS = (("num_heads", "attn_dim"), ("num_heads", "split_size"), ("num_attention_heads", "all_head_size"))


@dataclass(frozen=True)
class Attention:
    """An attention: the module that holds the number of heads, the layers that make them and their reader."""

    counter: str
    heads: int
    size: int  # width of a head
    makers: tuple[str, ...]
    blocks: int  # blocks in a maker's output: 3 if it computes query, key and value at once
    reader: str


def find_attentions(model: nn.Module) -> Iterator[Attention]:
    """The known attentions in the order of the model's modules; other types are skipped."""
    for name, module in model.named_modules():
        own = _timm(module) or _gpt2(module) or _bert(module)
        if own is not None and _fits(module, own):
            counter, reader, *makers = (f"{name}.{one}".strip(".") for one in (own.counter, own.reader, *own.makers))
            yield replace(own, counter=counter, reader=reader, makers=tuple(makers))


def set_heads(module: Any, heads: int) -> None:
    """Sets the number of heads in an attention's module."""
    for count, width in _COUNTS:
        if hasattr(module, count) and hasattr(module, width):
            size = getattr(module, width) // getattr(module, count)
            setattr(module, count, heads)
            setattr(module, width, heads * size)


def _timm(module: Any) -> Attention | None:
    if not _has(module, "qkv", "proj", "norm", "num_heads", "head_dim", "attn_dim"):
        return None
    if not isinstance(module.norm, nn.Identity) or getattr(module, "gate", None) is not None:
        return None
    return Attention("", module.num_heads, module.head_dim, ("qkv",), 3, "proj")


def _gpt2(module: Any) -> Attention | None:
    if not _has(module, "c_attn", "c_proj", "num_heads", "head_dim", "split_size"):
        return None
    # Other modules with these attribute names interleave query, key and value by head.
    return (
        Attention("", module.num_heads, module.head_dim, ("c_attn",), 3, "c_proj") if is_conv1d(module.c_attn) else None
    )


def _bert(module: Any) -> Attention | None:
    own: Any = getattr(module, "self", None)
    if not _has(own, "query", "key", "value", "num_attention_heads", "attention_head_size", "all_head_size"):
        return None
    own_parts = {name.partition(".")[0] for name, _ in own.named_parameters()}
    if own_parts != {"query", "key", "value"} or getattr(own, "has_relative_attention_bias", False):
        return None  # another part has something for each head
    makers = ("self.query", "self.key", "self.value")
    return Attention("self", own.num_attention_heads, own.attention_head_size, makers, 1, "output.dense")


def _has(module: Any, *keys: str) -> bool:
    return all(hasattr(module, key) for key in keys)


def _fits(module: nn.Module, one: Attention) -> bool:
    """Whether the layers exist and have the widths that the heads imply."""
    width = one.heads * one.size
    try:
        made = [_widths(module.get_submodule(maker))[1] for maker in one.makers]
        read = _widths(module.get_submodule(one.reader))[0]
    except AttributeError:
        return False
    return read == width and all(own == one.blocks * width for own in made)


def _widths(module: Any) -> tuple[int, int]:
    """Numbers of inputs and outputs; raises `AttributeError` if it is not a linear layer."""
    return (module.nx, module.nf) if is_conv1d(module) else (module.in_features, module.out_features)
