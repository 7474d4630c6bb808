"""Imports that take less time: without the garbage collector, and without what a library imports in vain."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """While this context is open, Python's garbage collector does not run.

    Importing torch and timm makes very many objects that stay; inspecting them again and again took much of the time.
    Afterwards they count as old: no collection inspects them at once, and the next full one does as ever.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what someone else has frozen stays frozen
            gc.freeze()
            gc.unfreeze()
        gc.enable()


@contextmanager
def set_apart() -> Iterator[None]:
    """While this context is open, Python's garbage collector inspects only what is made in it.

    For work that makes garbage for long, where `uncollected` would let it grow.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """While this context is open, modules of these names cannot be imported, unless they are imported already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: the import system's own sign
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)
