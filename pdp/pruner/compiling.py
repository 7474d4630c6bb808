"""What torch.compile has to be told of hooks that put weights into a module's `__dict__`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from pdp.layers import Site

# Whether torch.compile follows a deletion from a module's `__dict__`: PyTorch 2.14 does, 2.11 breaks the graph there.
DELETIONS_COMPILE = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 14)


def guard_hooks() -> None:
    """Makes torch.compile look at hooks before it takes a graph that it has made.

    By default it does not, and the graph of a dense model stands in for a pruned one of the same class, which then
    trains without its masks and says nothing. Graphs made so far lack that look and are dropped, once in a process.
    """
    import torch._dynamo

    if torch._dynamo.config.skip_nnmodule_hook_guards:
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()


def take_out(held: dict[str, Any], parameter: str) -> None:
    """Takes the effective weight out of a module's `__dict__` again."""
    if torch.compiler.is_compiling() and not DELETIONS_COMPILE:
        # The stored weight itself hides nothing, and the next one to be put replaces it.
        if parameter in held:
            held[parameter] = held["_parameters"][parameter]
    else:
        held.pop(parameter, None)


def uncover(sites: Iterable[Site]) -> None:
    """Leaves nothing in front of the stored weights, as a compiled forward may have done."""
    for site in sites:
        site.module.__dict__.pop(site.parameter, None)
