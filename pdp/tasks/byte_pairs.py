"""Trains a byte-level BPE vocabulary, here or in a process of its own.

Training counts all words of a text, for which it takes hundreds of megabytes; what this process has imported takes as
much again. The process of its own runs this file as a program and imports nothing but tokenizers.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

END_OF_TEXT = "<|endoftext|>"
_SIZE = 8  # bytes that say how many bytes a text has


def train(texts: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """The "vocab" and "merges" of a tokenizer of at most `vocabulary` entries, as tokenizers writes them."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocabulary, min_frequency=2, show_progress=False, special_tokens=[END_OF_TEXT]
    )
    model: dict[str, Any] = json.loads(trained.to_str())["model"]
    return model


def train_apart(texts: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """The same by a process of its own; raises `ChildProcessError` where that one was ended."""
    command = [sys.executable, __file__, str(vocabulary)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):  # it was ended: its exit code says so
            for text in texts:
                sent = text.encode("utf-8", "surrogatepass")
                process.stdin.write(len(sent).to_bytes(_SIZE, "little") + sent)
            process.stdin.close()
        said = process.stdout.read()
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    if code:
        raise ChildProcessError(f"the process that trains the tokenizer ended with {code}")
    model: dict[str, Any] = json.loads(said)
    return model


def _received(file: IO[bytes]) -> Iterator[str]:
    while size := file.read(_SIZE):
        yield file.read(int.from_bytes(size, "little")).decode("utf-8", "surrogatepass")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are no packages of others
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that waits for this one ends it
    json.dump(train(_received(sys.stdin.buffer), int(sys.argv[1])), sys.stdout)
