"""The parts of a Hugging Face transformer that stay dense unless the user asks for them; needs no transformers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pdp.layers import is_weighted

_HEAD = "the output head of {}"
_AROUND = "around the blocks of {}, as embeddings, poolers and heads are"


def is_transformer(module: nn.Module) -> bool:
    """Whether it is a model of the transformers library."""
    return any(
        one.__name__ == "PreTrainedModel" and one.__module__.startswith("transformers.") for one in type(module).__mro__
    )


def around_the_blocks(model: nn.Module) -> dict[str, str]:
    """The layers of the transformers in `model` outside of any stack of blocks, with the reason why they stay dense.

    A stack is an `nn.ModuleList`; in a transformer without one only the output head stays dense.
    """
    found: dict[str, str] = {}
    for prefix, own in _transformers(model):
        kind = type(own).__name__
        stacks = [name for name, module in own.named_modules() if isinstance(module, nn.ModuleList) and name]
        head = _head(own)
        for name, module in own.named_modules():
            if not is_weighted(module):
                continue
            if module is head:
                found[_joined(prefix, name)] = _HEAD.format(kind)
            elif stacks and not any(name.startswith(f"{stack}.") for stack in stacks):
                found[_joined(prefix, name)] = _AROUND.format(kind)
    return found


def _transformers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The outermost transformers in `model`."""
    known: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{one}.") or not one for one in known):
            continue
        if is_transformer(module):
            known.append(name)
            yield name, module


def _head(own: nn.Module) -> nn.Module | None:
    try:
        head = own.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return head if isinstance(head, nn.Module) else None


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")
