"""Refusals in the reader's terms: the command line's keys, or Python's keywords for users of the library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pdp.errors import Refusal

_config: ContextVar[bool] = ContextVar("config", default=False)
_NAME = r"[A-Za-z_]+"
_RULES = (
    (r"; dry_run=true lists them", ""),
    (r"prune\.exclude=([^\s,;:]+)", r'exclude=["\1"]'),
    (r"prune\.exclude", "exclude"),
    (rf"schedule\.({_NAME})=([^\s,;:]+)", r'schedule={"\1": "\2"}'),
    (rf"schedule\.({_NAME})", r'schedule["\1"]'),
    (rf"prune\.({_NAME})=(?!true|false)([a-z]\w*)(?=[\s,;:]|$)", r'pattern_options={"\1": "\2"}'),
    (rf"prune\.({_NAME})=([^\s,;:\[]*\[[^\]]*\]\)?|[^\s,;:]+)", r'pattern_options={"\1": \2}'),
    (rf"prune\.({_NAME})", r'pattern_options["\1"]'),
    (rf"prune=({_NAME}|\d+:\d+)", r'pattern="\1"'),
    (r"recipe\.epochs", "epochs"),
    (r"recipe\.", ""),
    (rf"quantize\.({_NAME})=([^\s,;:]+)", r'quantize_options={"\1": "\2"}'),
    (rf"quantize\.({_NAME})", r'quantize_options["\1"]'),
    (r"quantize=(\w+)", r'quantize="\1"'),
    (rf"method\.({_NAME})", r"\1"),
    (r"allocation\.path", "allocation_path"),
    (rf"allocation\.({_NAME})", r"\1"),
    (r"model\.pretrained", "the model"),
    (r"\bsparsity=(?=[,;:]|$)", "sparsity="),
)


@contextmanager
def config_words() -> Iterator[None]:
    """Inside this context, refusals of the library name the command line's keys."""
    token = _config.set(True)
    try:
        yield
    finally:
        _config.reset(token)


def speaks_config() -> bool:
    """Whether `config_words` is active: the command line calls the library, and has checked what was typed there."""
    return _config.get()


@contextmanager
def python_words() -> Iterator[None]:
    """Inside this context, refusals name Python's keywords, unless `config_words` is active."""
    try:
        yield
    except Refusal as error:
        if _config.get():
            raise
        raise type(error)(in_python(str(error))) from None


def in_python(message: str) -> str:
    """The message with every key of the command line replaced by the corresponding keyword."""
    for key, keyword in _RULES:
        message = re.sub(key, keyword, message)
    message = re.sub(r"\bnull\b", "None", message)
    return message.replace("=true", "=True").replace("=false", "=False").replace(": true", ": True")
