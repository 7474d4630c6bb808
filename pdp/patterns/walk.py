"""Watches one forward of a model: which channels each tensor holds, and which of them that ties together.

Every operation that reaches PyTorch's dispatcher is seen with its actual tensors, whatever Python code calls it.
`pdp.patterns.rules` says what it does to labels; an operation without a rule pins the channels that it reads. There is
one forward, and the work is proportional to its number of operations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pdp.layers import is_weighted
from pdp.patterns import labels as lab
from pdp.patterns.atoms import Atoms
from pdp.patterns.choices import REASON, Choices
from pdp.patterns.labels import Mark

_MOST_ELEMENTS = 2**18  # most elements of a parameter to follow one by one; larger ones are weights

Owner = tuple[str, nn.Module, str]  # module name, module, name of the tensor in it
Lay = tuple[torch.Size, tuple[int, ...], int]  # sizes, strides and first place of a tensor in its memory


class Walk(TorchDispatchMode):
    """Labels every tensor of a forward; afterwards `atoms` holds what is tied together and what must stay.

    `apart` are layers whose rows are followed in another way (attention heads); `follow` applies an operation's rule.
    """

    def __init__(self, model: nn.Module, apart: set[str], follow: Callable[[Walk, Any, Any, Any, Any], None]):
        super().__init__()
        self.follow = follow
        self.atoms = Atoms()
        self.apart = apart
        self.owners: dict[int, list[Owner]] = {}
        self.held: dict[int, Tensor] = {}
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.counts: list[
            tuple[str, nn.Module | None, str, int | None, np.ndarray]
        ] = []  # modules' numbers of channels
        for name, module in self.modules.items():
            for table in (module._parameters, module._buffers):
                for key, tensor in table.items():
                    if tensor is not None and not any(one[1:] == (module, key) for one in self._known(tensor)):
                        self.owners.setdefault(id(tensor), []).append((name, module, key))
                        self.held[id(tensor)] = tensor
        self.masked: list[np.ndarray] = []  # atoms of parameters that must be masked together with their unit
        self.read_kept: list[np.ndarray] = []  # atoms of columns that read something other than zero from a pruned unit
        self.shared: dict[int, str] = {}  # parameters that something reads as a whole, with the reason
        self.stack: list[tuple[str, str]] = []
        self.lay: Lay | None = None  # of the tensor that as_strided is about to give other strides
        self.closed = 0  # nesting depth of modules that are followed as a whole
        self.macs = 0
        self.choices = Choices()
        self._marks: Any = WeakTensorKeyDictionary()
        self._alive: dict[int, list[weakref.ref[Tensor]]] = {}

    def _known(self, tensor: Tensor) -> list[Owner]:
        return self.owners.get(id(tensor), [])

    @property
    def where(self) -> str:
        """The module that is computing now, in words."""
        if not self.stack or not self.stack[-1][0]:
            return "the model's own forward"
        name, kind = self.stack[-1]
        return f"{name}, {kind}"

    @property
    def running(self) -> tuple[str, nn.Module | None]:
        """The innermost module whose forward runs, and its name."""
        name = self.stack[-1][0] if self.stack else ""
        return name, self.modules.get(name) if self.stack else None

    def mark(self, tensor: Tensor) -> Mark | None:
        """What is known about a tensor."""
        found = self._marks.get(tensor)
        if found is None and id(tensor) in self.owners:
            return Mark(source=(id(tensor), tuple(range(tensor.dim()))))
        return found

    def labels(self, tensor: Any) -> Tensor | None:
        """A tensor's labels; for a parameter they identify each element."""
        if not isinstance(tensor, Tensor) or tensor.numel() < 2:
            return None
        mark = self.mark(tensor)
        if mark is None or mark.labels is not None or mark.source is None:
            return None if mark is None else mark.labels
        identity, axes = mark.source
        own = self.held[identity]
        if own.dim() > 1 and any(key == "weight" and is_weighted(module) for _, module, key in self.owners[identity]):
            self.share(identity, f"its weight is computed from another tensor in {self.where} before it is read")
            return None
        if own.numel() > _MOST_ELEMENTS or not own.is_floating_point():
            self.share(identity, f"it is read as a whole in {self.where}")
            return None
        first = self.atoms.block(("elements", identity), own.numel())
        state = lab.FREE if isinstance(own, nn.Parameter) else lab.KEPT
        numbers = lab.encode(torch.arange(first, first + own.numel()).reshape(own.shape), state, parameter=True)
        present = [axis for axis in axes if axis is not None]
        numbers = numbers.permute(present)
        for dim, axis in enumerate(axes):
            if axis is None:
                numbers = numbers.unsqueeze(dim)
        return numbers

    def data_labels(self, tensor: Any) -> Tensor | None:
        """The labels of channels that a layer makes; None for a parameter."""
        if not isinstance(tensor, Tensor):
            return None
        mark = self._marks.get(tensor)
        return None if mark is None else mark.labels

    def put(self, tensor: Any, labels: Tensor | None, source: Any = None) -> None:
        """Stores what is known about a tensor."""
        if labels is None and source is None:
            self._marks.pop(tensor, None)
        else:
            self._marks[tensor] = Mark(labels, source)

    def share(self, identity: int, what: str) -> None:
        """Notes that a parameter is read as a whole, so that no part of it can be removed."""
        self.shared.setdefault(identity, what)

    def pin(self, labels: Tensor | None, reason: str) -> None:
        """Pins the channels of these labels: they must stay."""
        if labels is not None:
            atoms = lab.atoms_of(labels)
            self.atoms.pin(atoms[atoms >= 0], reason)

    def pin_all(self, values: Any, reason: str) -> None:
        """Pins the channels in all of these tensors; parameters among them are read as a whole."""
        for one in tree_leaves(values):
            if isinstance(one, Tensor):
                mark = self.mark(one)
                if mark is not None and mark.labels is not None:
                    self.pin(mark.labels, reason)
                elif mark is not None and mark.source is not None:
                    self.share(mark.source[0], reason)

    def mask(self, atoms: np.ndarray) -> None:
        """Notes that these elements of parameters must be zero if their unit is pruned."""
        self.masked.append(atoms[atoms >= 0])

    def weight_site(self, identity: int, outputs: int, inputs: int) -> Owner | None:
        """The layer whose weight this is, with these axes; None for any other parameter."""
        for owner in self.owners[identity]:
            name, module, key = owner
            if key == "weight" and is_weighted(module):
                turned = type(module).__name__ == "Conv1D" or isinstance(module, nn.modules.conv._ConvTransposeNd)
                if (outputs, inputs) == ((1, 0) if turned else (0, 1)):
                    return owner
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = self.stack[-1][0] if self.stack else ""
        self.lay = lay_of(args[0]) if title(func).startswith("as_strided") else None
        out = self.choices.note(title(func), args, kwargs, func(*args, **kwargs), name, self.owners)
        if self.closed:
            self._note(func, args, out)
            return out
        before = self._written(func, args)
        try:
            self.follow(self, func, args, kwargs, out)
        except Exception as error:  # the operation has arguments that its rule does not handle
            self.pin_all((args, kwargs), f"its channels pass through {title(func)} ({self.where}): {error}")
            for one in tree_leaves(out):
                if isinstance(one, Tensor) and id(one) not in self.owners:
                    self.put(one, None)
        if before is not None:
            self._settle(args[0], before[0], func)
        self._keep_unseen(name, (args, kwargs, out))
        self._note(func, args, out)
        return out

    def _keep_unseen(self, name: str, values: Any) -> None:
        """Channels in these values stay where module `name` may run layers that read them and were not seen."""
        if name in self.choices.unseen:
            reason = REASON.format(name or "the model's own forward", self.choices.unseen[name])
            for one in tree_leaves(values):
                self.pin(self.data_labels(one), reason)

    def _note(self, func: Any, args: Any, out: Any) -> None:
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self._alive.setdefault(one.untyped_storage()._cdata, []).append(weakref.ref(one))

    def _written(self, func: Any, args: Any) -> tuple[Tensor | None] | None:
        """The labels, before the operation, of the tensor that it writes in place; None if it writes none."""
        first = func._schema.arguments[0] if func._schema.arguments else None
        if first is None or first.alias_info is None or not first.alias_info.is_write or not args:
            return None
        if not isinstance(args[0], Tensor):
            return None
        return (self.data_labels(args[0]),)

    def _settle(self, written: Tensor, before: Tensor | None, func: Any) -> None:
        """Relabels other tensors in the memory that was written; pins channels if they now hold different ones."""
        after = self.data_labels(written)
        if id(written) in self.owners:
            self.share(id(written), "it is written in the forward")
            self.pin(after, f"its channels are written into a tensor of the model's own ({self.where})")
            return
        if _same(before, after):
            return
        storage = written.untyped_storage()
        alive = [ref() for ref in self._alive.get(storage._cdata, [])]
        others = [one for one in alive if one is not None and one is not written]
        if all(one.shape == written.shape and one.stride() == written.stride() for one in others) and (
            written.numel() * written.element_size() >= storage.nbytes() or not written._is_view()
        ):
            for one in others:
                self.put(one, after)
            return
        reason = f"its channels are written into a part of another tensor ({title(func)} in {self.where})"
        for labels in (before, after, *(self.data_labels(one) for one in others)):
            self.pin(labels, reason)

    @contextmanager
    def watching(self, model: nn.Module, wholes: dict[str, Any]) -> Iterator[None]:
        """While this context is open, forwards of `model` are followed; `wholes` are modules with their own rules."""
        with ExitStack() as stack:
            for name, module in model.named_modules(remove_duplicate=True):
                for handle in self._announce(name, module, wholes.get(name)):
                    stack.callback(handle.remove)
            stack.enter_context(self)
            yield

    def _announce(self, name: str, module: nn.Module, whole: Any) -> list[Any]:
        depth: list[int] = []

        def keep(values: Any) -> None:
            for one in self.stack[-2:]:
                self._keep_unseen(one[0], values)

        def enter(_: nn.Module, inputs: Any, named: Any) -> None:
            depth.append(len(self.stack))
            self.stack.append((name, type(module).__name__))
            self.closed += whole is not None
            keep((inputs, named))

        def leave(_: nn.Module, inputs: Any, output: Any) -> None:
            keep(output)
            del self.stack[depth.pop() :]
            if whole is not None:
                self.closed -= 1
                if not self.closed:
                    whole(self, module, inputs, output)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, always_call=True),
        ]


@lru_cache(maxsize=4096)
def title(func: Any) -> str:
    """The operation's name in the dispatcher."""
    return str(func).removeprefix("aten.").partition(".")[0]


def lay_of(tensor: Tensor) -> Lay:
    """Where its elements lie in memory; the stride of a dimension of size 1 does not matter and is 0."""
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.shape, tuple(stride if size > 1 else 0 for size, stride in strides), int(tensor.storage_offset())


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one == other).all())
