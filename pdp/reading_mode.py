"""How this thread reads weights now: the stored ones, or effective ones for any use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Mode(threading.local):
    stored_only = False
    for_any_use = False


_mode = _Mode()


@contextmanager
def stored_weights() -> Iterator[None]:
    """Inside this context, this thread's forwards compute with the stored weights, even if the model has a pruner."""
    before, _mode.stored_only = _mode.stored_only, True
    try:
        yield
    finally:
        _mode.stored_only = before


def reads_stored() -> bool:
    """Whether this thread is in `stored_weights`."""
    return _mode.stored_only


@contextmanager
def for_any_use() -> Iterator[None]:
    """Inside this context, effective weights are made so that their reader may use them in any way."""
    before, _mode.for_any_use = _mode.for_any_use, True
    try:
        yield
    finally:
        _mode.for_any_use = before


def reads_for_any_use() -> bool:
    """Whether this thread is in `for_any_use`."""
    return _mode.for_any_use
