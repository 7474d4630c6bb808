"""In which way this thread reads weights now: the stored ones for once, or effective ones for whatever use."""

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
    """Inside, this thread's forwards compute with the stored weights, whatever pruner the model has."""
    before, _mode.stored_only = _mode.stored_only, True
    try:
        yield
    finally:
        _mode.stored_only = before


def reads_stored() -> bool:
    """Whether `stored_weights` holds in this thread."""
    return _mode.stored_only


@contextmanager
def for_any_use() -> Iterator[None]:
    """Inside, effective weights are made for whoever reads them, who may do anything with them."""
    before, _mode.for_any_use = _mode.for_any_use, True
    try:
        yield
    finally:
        _mode.for_any_use = before


def reads_for_any_use() -> bool:
    """Whether `for_any_use` holds in this thread."""
    return _mode.for_any_use
