"""A byte-level vocabulary is the same by a process of its own, which is small; one that is ended is told in a line."""

import contextlib

import psutil
import pytest

from pdp.errors import Stopped
from pdp.tasks import byte_pairs
from pdp.tasks.text_tokenizer import train_byte_pairs

TEXTS = ["the cat sat on the mat\n" * 50, "", "café 北京\r\n \u2028 x=y\n", "<|endoftext|> it's 12 times;" * 9, "\n"]


def children():
    """The processes that train now; others that this one started and that have ended have no command line."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
            found += [process] if byte_pairs.__file__ in process.cmdline() else []
    return found


def child():
    """The process that trains now."""
    (process,) = children()
    return process


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[::-1], [], [""], [" ".join(map(str, range(20_000)))]])
def test_a_process_of_its_own_finds_the_same(texts):
    assert byte_pairs.train_apart(iter(texts), 320) == byte_pairs.train(texts, 320)


def test_it_imports_nothing_large():
    def watched():
        for number in range(300):  # more than the pipe holds, so that it has read some when the last is sent
            yield f"{number} the cat sat on a mat\n" * 100
        assert not any("torch" in one.path for one in child().memory_maps())

    assert len(train_byte_pairs(watched(), 300, apart=True)) == 300


@pytest.mark.parametrize("more", [0, 3000])
def test_one_that_is_killed_is_told_in_a_line(more):
    def killed():
        yield "the cat sat\n"
        child().kill()
        for _ in range(more):
            yield "the cat sat\n" * 1000

    with pytest.raises(Stopped) as caught:
        train_byte_pairs(killed(), 300, apart=True)
    assert "ended with -9" in str(caught.value) and "\n" not in str(caught.value)


def test_none_is_left_where_the_text_cannot_be_read():
    def broken():
        yield "the cat"
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"):
        byte_pairs.train_apart(broken(), 300)
    assert not children()
