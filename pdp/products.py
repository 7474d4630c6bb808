"""Counts the multiply-adds of a forward where they are computed, by the weight that takes part in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Operations for which PyTorch's counter has no formula: the operands of each product, and its multiply-adds.
_MORE: dict[Any, Callable[..., list[tuple[list[Tensor], int]]]] = {
    aten.mv: lambda matrix, vector: [([matrix, vector], matrix.numel())],
    aten.addmv: lambda _, matrix, vector: [([matrix, vector], matrix.numel())],
    aten.dot: lambda one, other: [([one, other], one.numel())],
    aten.vdot: lambda one, other: [([one, other], one.numel())],
    aten.addbmm: lambda _, one, other: [([one, other], one.numel() * other.shape[-1])],
    aten.mkldnn_rnn_layer: lambda x, of_input, of_state, *_: [
        ([of_input], x.numel() // x.shape[-1] * of_input.numel()),
        ([of_state], x.numel() // x.shape[-1] * of_state.numel()),
    ],
    aten._trilinear: lambda one, weight, other, *_: [([weight], one.shape[0] * weight.numel())],
}


class Products(TorchDispatchMode):
    """Counts every product in this context: `by_name` with a parameter or buffer, `rest` of two activations.

    What is computed from weights alone (a standardised weight or a cast) counts as the weight. `uncounted` are the
    operations without a formula, or whose formula failed. If modules share a weight, the one that is running counts.
    """

    def __init__(self, model: nn.Module, first: list[str]):
        super().__init__()
        self.by_name: dict[str, int] = {}
        self._first = set(first)
        self.rest = 0
        self.uncounted: dict[str, None] = {}
        self._running: list[str] = []  # modules that share a weight and are in their forward
        self._places: dict[int, list[tuple[int, int, str]]] = {}  # by storage: (from, to, name)
        self._derived: dict[int, tuple[Tensor, tuple[str, ...]]] = {}
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
            model.named_buffers(remove_duplicate=False)
        )
        for name in sorted(tensors, key=lambda one: one not in first):
            tensor = tensors[name]
            if isinstance(tensor, nn.parameter.UninitializedTensorMixin) or tensor.dim() < 1:  # type: ignore[attr-defined]
                continue
            start, length = _span(tensor)
            self._places.setdefault(_storage(tensor), []).append((start, start + length, name))

    def runs(self, name: str) -> Callable[..., None]:
        """A forward pre-hook for the module whose weight has that name."""
        return lambda *_: self._running.append(name)

    def ran(self, name: str) -> Callable[..., None]:
        """The corresponding forward hook."""
        return lambda *_: self._running.remove(name) if name in self._running else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = flop_registry.get(packet)
        if formula is None and packet not in _MORE and func is not torch.ops.prim.device.default:
            with self:
                taken_apart = func.decompose(*args, **kwargs)
                if taken_apart is not NotImplemented:
                    return taken_apart
        out = func(*args, **kwargs)
        operands = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        try:
            if packet in _MORE:
                for parts, macs in _MORE[packet](*args):
                    self._add(parts, macs)
            elif formula is not None:
                self._add(operands, formula(*args, **kwargs, out_val=out) // 2)
            elif func.namespace not in ("aten", "prim", "prims") and any(
                one.dim() > 1 and self._names(one) for one in operands
            ):
                self.uncounted[str(packet)] = None
        except Exception:  # a formula may fail on unknown shapes in any way; the rest is counted
            self.uncounted[str(packet)] = None
        self._follow(operands, out)
        return out

    def _add(self, operands: list[Tensor], macs: int) -> None:
        named = [names for one in operands if one.dim() > 1 and (names := self._names(one))]
        if not named:
            self.rest += macs
            return
        # Of two parameters, a table of positions and a layer's weight say, the layer's.
        names = next((names for names in named if names[0] in self._first), named[0])
        name = next((name for name in reversed(self._running) if name in names), names[0])
        self.by_name[name] = self.by_name.get(name, 0) + macs

    def _names(self, tensor: Tensor) -> tuple[str, ...]:
        """The parameters and buffers that a tensor is, is a view of, or was computed from."""
        storage = _storage(tensor)
        if storage in self._derived:
            return self._derived[storage][1]
        at = _span(tensor)[0]
        return tuple(name for start, end, name in self._places.get(storage, ()) if start <= at < end)

    def _follow(self, operands: list[Tensor], out: Any) -> None:
        """Notes a result computed only from weights as a weight."""
        if not operands:
            return
        found: dict[str, None] = {}
        for one in operands:
            names = self._names(one)
            if not names:
                return
            found |= dict.fromkeys(names)
        for result in tree_leaves(out):
            if isinstance(result, Tensor) and not self._names(result):
                self._derived[_storage(result)] = (result, tuple(found))  # kept, so that its memory is not reused


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a subclass that stores its numbers elsewhere
        return id(tensor)


def _span(tensor: Tensor) -> tuple[int, int]:
    try:
        length = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return int(tensor.storage_offset()), max(length, 1)
    except (NotImplementedError, RuntimeError):
        return 0, max(1, math.prod(tensor.shape))


def shared_weights(sites: list[tuple[str, nn.Module, Tensor]]) -> Iterator[tuple[str, nn.Module]]:
    """The named weights that are the same tensor as another one, with the modules that read them."""
    count: dict[int, int] = {}
    for _, _, weight in sites:
        count[id(weight)] = count.get(id(weight), 0) + 1
    return ((name, caller) for name, caller, weight in sites if count[id(weight)] > 1)
