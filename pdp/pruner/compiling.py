"""What torch.compile must be told about hooks that put weights into a module's `__dict__`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import torch

from pdp.layers import Site

# Whether torch.compile supports deletions from a module's `__dict__`: PyTorch 2.14 does, 2.11 breaks the graph there.
DELETIONS_COMPILE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)


def guard_hooks(hooks: Iterable[Callable[..., Any]]) -> None:
    """Makes torch.compile check hooks before it reuses a graph, and compile these ones only inside of a forward.

    By default it does not: then the graph of a dense model is reused for a pruned one of the same class, which silently
    trains without its masks. Graphs made so far have no such check and are dropped, once per process.
    """
    import torch._dynamo

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()
    # Of many modules that are compiled one by one PyTorch runs the ninth and later ones uncompiled, and then compiles
    # the functions that they call: a hook that is compiled beside another that is not would leave a weight in place.
    # Where each hook is compiled by itself, one that removes weights may have been compiled when there were none.
    frames: Any = torch._C._dynamo.eval_frame
    with suppress(AttributeError):  # these names are PyTorch's own, and a later version may have others
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.SKIP)
        for one in hooks:
            frames.set_code_exec_strategy(one.__code__, skip)


def counted_apart(hook: Any) -> MethodType:
    """The same hook with code of its own.

    PyTorch keeps eight compiled forms of a code, whichever instance it runs for, and then runs it uncompiled: the hook
    of the third or fourth model of a process would put no weight in place for a forward that is compiled.
    """
    function: Any = hook.__func__
    apart = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return MethodType(apart, hook.__self__)


def take_out(held: dict[str, Any], parameter: str) -> None:
    """Removes the effective weight from a module's `__dict__`."""
    if torch.compiler.is_compiling() and not DELETIONS_COMPILE:
        # If it is the stored weight itself, it hides nothing, and the next one replaces it.
        if parameter in held:
            held[parameter] = held["_parameters"][parameter]
    else:
        held.pop(parameter, None)


def mark_of(parameter: str) -> str:
    """The key in a module's `__dict__` that says that a forward around the module's own has put this weight there."""
    return f"{parameter} around"


def unmark(held: dict[str, Any], mark: str) -> None:
    """Takes a mark away, or makes it None where that cannot be compiled."""
    if torch.compiler.is_compiling() and not DELETIONS_COMPILE:
        held[mark] = None
    else:
        held.pop(mark, None)


def uncover(sites: Iterable[Site]) -> None:
    """Removes anything that hides the stored weights, as a compiled forward may have left it."""
    for site in sites:
        site.module.__dict__.pop(site.parameter, None)
        site.module.__dict__.pop(mark_of(site.parameter), None)
