"""Access to the Hugging Face hub with short timeouts: its own clients retry for minutes if there is no network."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PATIENCE = 10.0  # seconds to wait for an answer from the hub


def reachable() -> bool:
    """Whether the hub answers; asked only once per process, and False without asking where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@functools.cache
def _answers(endpoint: str) -> bool:
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=PATIENCE):
            return True
    except HTTPError:
        return True
    except (OSError, HTTPException):
        return False


@contextmanager
def cache_alone(offline: bool) -> Iterator[None]:
    """If `offline`, the hub's client uses only its local cache inside this context."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def limited_patience() -> Iterator[None]:
    """Inside this context downloads fail after some seconds of silence, instead of the client's minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
