"""Mixtures of experts: which parameters are stacks of experts' matrices, and which layers choose among experts.

Recent models keep the weights of all experts in one parameter, (experts, out, in) or (experts, in, out). They are
recognised by what a module contains, whatever its class is called. An unknown block is accepted if its sizes tell which
dimension is which; otherwise it stays dense, with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

UNTOLD = "of experts whose inputs and outputs cannot be told apart by their sizes"
ROUTER = "a router, which chooses among experts"

_COUNTS = (
    "num_experts",
    "n_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_layer",
    "n_shared_experts",
)
_INPUTS = ("hidden_size", "hidden_dim", "dim", "embed_dim", "d_model", "input_size", "in_features", "input_dim")
_OUTPUTS = ("output_size", "out_features", "output_dim")
_ROUTING = re.compile(r"Router|Gating|TopKGate|MoEGate|MoeGate")
_GATES = ("gate", "router", "shared_expert_gate", "gating", "router_proj")


def expert_stacks(module: nn.Module) -> dict[str, bool | None]:
    """The module's parameters of shape (experts, out, in) by name, with True for those of shape (experts, in, out).

    The value is False for (experts, out, in), and None if the two cannot be distinguished.
    """
    found = {
        key: (int(one.shape[0]), int(one.shape[1]), int(one.shape[2]))
        for key, one in module._parameters.items()
        if one is not None and "bias" not in key and _dimensions(one) == 3 and one.is_floating_point()
    }
    if not found or not _holds_experts(module, {shape[0] for shape in found.values()}):
        return {}
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return dict.fromkeys(found, said)
    turned = _by_sizes(module, {key: shape[1:] for key, shape in found.items()})
    return {key: turned for key in found}


def _dimensions(parameter: Any) -> int:
    return 0 if isinstance(parameter, nn.parameter.UninitializedTensorMixin) else parameter.dim()  # type: ignore[attr-defined]


def _holds_experts(module: nn.Module, counts: set[int]) -> bool:
    if len(counts) != 1 or min(counts) < 1:
        return False
    said = [getattr(module, key, None) for key in _COUNTS]
    return counts <= {one for one in said if isinstance(one, int)} or "Expert" in type(module).__name__


def _by_sizes(module: nn.Module, shapes: dict[str, tuple[int, int]]) -> bool | None:
    """Whether the matrices are (in, out), if only one reading of the sizes makes sense; None if both do."""
    inputs, outputs = (_sizes(module, keys) for keys in (_INPUTS, _OUTPUTS))
    if len(shapes) == 1:
        ((first, second),) = shapes.values()
        straight = second in inputs and (first in outputs or not outputs)
        turned = first in inputs and (second in outputs or not outputs)
        return None if straight == turned else turned
    down = next((key for key in reversed(shapes) if re.search(r"down|w2|wo|fc2|output|proj_out", key)), None)
    if down is None:
        return None
    votes = set()
    for key, (first, second) in shapes.items():
        if key == down:
            continue
        low, high = shapes[down]
        # (k * intermediate, hidden) with (hidden, intermediate), or both transposed.
        straight = second == low and first in (high, 2 * high)
        turned = first == high and second in (low, 2 * low)
        if straight and turned:
            straight, turned = second in inputs, first in inputs
        votes.add(None if straight == turned else turned)
    return votes.pop() if len(votes) == 1 else None


def _sizes(module: nn.Module, keys: tuple[str, ...]) -> set[int]:
    own = {getattr(module, key, None) for key in keys}
    shared = {getattr(getattr(module, "config", None), key, None) for key in keys[:1]}
    return {one for one in own | shared if isinstance(one, int)}


def router_weights(model: nn.Module) -> dict[tuple[int, str], str]:
    """The weights that choose among experts, or weight their outputs, as (module, parameter) -> name."""
    found: dict[tuple[int, str], str] = {}
    routing: list[str] = []
    for name, module in model.named_modules():
        if _ROUTING.search(type(module).__name__) or _is_gate(model, name):
            routing.append(name)
        if any(name == one or name.startswith(f"{one}.") for one in routing):
            for key, one in module._parameters.items():
                if one is not None and _dimensions(one) == 2 and "bias" not in key:
                    found[id(module), key] = name if key == "weight" else f"{name}.{key}".lstrip(".")
    return found


def _is_gate(model: nn.Module, name: str) -> bool:
    """Whether it is the linear layer (or its equivalent) that chooses among the experts beside it."""
    parent, _, key = name.rpartition(".")
    if key not in _GATES:
        return False
    siblings = model.get_submodule(parent)._modules
    return any("expert" in other and other != key and one is not None for other, one in siblings.items())


@contextmanager
def experts_one_by_one(model: nn.Module) -> Iterator[None]:
    """Inside this context, transformers multiplies by each expert's matrix in turn: fused products cannot be followed.

    The model's configuration says how experts are computed.
    """
    key = "_experts_implementation_internal"
    before: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if key in getattr(config, "__dict__", {}):
            before.setdefault(id(config), (config, config.__dict__[key]))
    try:
        for config, _ in before.values():
            config.__dict__[key] = "eager"
        yield
    finally:
        for config, value in before.values():
            config.__dict__[key] = value


class ExpertTokens:
    """Counts, in this context, the tokens that reach each block of experts, whether or not a given expert computes."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._counts: dict[int, int] = {}
        self._blocks: dict[int, int] = {}  # the block of each module of experts
        self._handles: list[Any] = []

    def __enter__(self) -> ExpertTokens:
        for name, module in self._model.named_modules():
            if expert_stacks(module) and name:
                block = self._model.get_submodule(name.rpartition(".")[0])
                self._blocks[id(module)] = id(block)
                if id(block) not in self._counts:
                    self._counts[id(block)] = 0
                    self._handles.append(block.register_forward_pre_hook(self._note, with_kwargs=True))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        given = (one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.is_floating_point())
        first = next((one for one in given if one.dim() > 1), None)
        if first is not None:
            self._counts[id(block)] += first.numel() // first.shape[-1]

    def of(self, module: nn.Module) -> int:
        """The number of tokens that reached the block of this module of experts."""
        return self._counts.get(self._blocks.get(id(module), 0), 0)
