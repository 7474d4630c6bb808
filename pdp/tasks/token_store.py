"""The tokens of a large text in a file: written once, by any number of processes, then read through a memory map.

A store is a folder in the cache. Each block of the text is tokenized into a file of its own by the process that holds
the block's lock. If that process is killed, the system releases the lock, and finished blocks stay. Once all blocks
are there, they are joined into one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from pdp.environment import cache_folder
from pdp.errors import Refusal
from pdp.tasks.mapped_tokens import MappedTokens, add_to_digest, short_digest
from pdp.tasks.text_streams import StreamedText
from pdp.tasks.text_tokenizer import encode_plainly, load_tokenizer

# In bytes: a tokenizer is trained on all of a text of at most WHOLE, and on SAMPLE of a larger one.
WHOLE, SAMPLE = 600 * 10**6, 200 * 10**6
_FORMAT = 1
_CHUNK = 2**20  # characters that are encoded at a time
_HEADER = 24  # bytes before the tokens of a block: three uint64, the numbers of tokens, of words and of bytes of text
_POLL = 0.2  # seconds between two checks for blocks that other processes are writing
_JOIN = 2**40  # byte of the lock file that is locked for joining; byte n is locked for block n


def token_folder(otherwise: str | Path) -> Path:
    """The folder of all stores: in the cache, or in `otherwise`; raises `Refusal` if neither can be written to."""
    folder = cache_folder(otherwise)
    if folder is None:
        raise Refusal(
            "the tokens of a text this large are kept in files, and no folder for them can be written: set "
            "PDP_CACHE_DIR to one"
        )
    return folder / "tokens"


class TokenStore:
    """The tokens of one text, made by one tokenizer."""

    def __init__(self, folder: Path, text: StreamedText, tokenizer: Any):
        self.text, self.tokenizer = text, tokenizer
        known = [_FORMAT, text.stamp, _digest_of(tokenizer)]
        self.key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]
        self.folder = folder / self.key
        self.blocks = self.folder / "blocks"
        self.stored = "uint16" if max(tokenizer.get_vocab().values()) < 2**16 else "uint32"
        self.drops_space = _drops_space(tokenizer)

    def open(self, workers: int, shown: bool = True) -> MappedTokens:
        """The tokens; if they are not stored yet, `workers` processes make them now.

        Raises `Refusal` if the disk is full or the text cannot be read.
        """
        try:
            while (found := self.read()) is None:
                self.blocks.mkdir(parents=True, exist_ok=True)
                with self._alone(_JOIN, wait=True):
                    if self.read() is None:  # an index that is there belongs to tokens that were cut short
                        (self.folder / "tokens.json").unlink(missing_ok=True)
                with contextlib.suppress(FileNotFoundError):  # another process has joined the blocks meanwhile
                    with _helpers(self, workers - 1):
                        self.make(shown)
                    self._join()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refusal(
                    f"{self.folder.parent} has no room for the tokens of {self.text.size / 1e9:.1f} GB of text (what "
                    "is there is kept, and the same command goes on): make room, or set PDP_CACHE_DIR to another folder"
                ) from None
            raise
        return found

    def read(self) -> MappedTokens | None:
        """The stored tokens; None unless all of them are there."""
        try:
            told = json.loads((self.folder / "tokens.json").read_text(encoding="utf-8"))
            path = self.folder / "tokens.bin"
            if path.stat().st_size != told["count"] * np.dtype(told["stored"]).itemsize:
                return None
            return MappedTokens(path, told["stored"], told["count"], told["words"], told["size"], self.key)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def make(self, shown: bool = False) -> None:
        """Makes the missing blocks until all are there; blocks that other processes have locked are left to them."""
        numbers = range(self.text.blocks)
        missing = [number for number in numbers if not self._path(number).is_file()]
        while missing and not (self.folder / "tokens.json").is_file():
            made = 0
            for number in track(missing, "tokenizing", transient=True, disable=not shown):
                with self._alone(number) as mine:
                    if mine and not self._path(number).is_file() and self.blocks.is_dir():
                        self._make(number)
                        made += 1
            missing = [number for number in missing if not self._path(number).is_file()]
            if missing and not made:
                time.sleep(_POLL)

    def _path(self, number: int) -> Path:
        return self.blocks / f"{number:06d}.tokens"

    def _make(self, number: int) -> None:
        path, counts = self._path(number), np.zeros(3, np.uint64)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with beside.open("wb") as file:
            file.write(bytes(_HEADER))
            for pieces, words, size in self._chunks(number):
                tokens = encode_plainly(self.tokenizer, pieces)
                tokens.astype(self.stored).tofile(file)
                counts += np.array([len(tokens), words, size], np.uint64)
            file.seek(0)
            counts.tofile(file)
        beside.replace(path)

    def _chunks(self, number: int) -> Iterator[tuple[list[str], int, int]]:
        pieces: list[str] = []
        length = words = size = 0
        inside = False  # whether the piece before belongs to the same line
        for piece in self.text.pieces(number):
            words += len(piece.split())
            pieces.append(piece[1:] if inside and self.drops_space and piece[0] == " " else piece)
            inside = not piece.endswith("\n")
            length, size = length + len(piece), size + len(piece.encode())
            if length > _CHUNK:
                yield pieces, words, size
                pieces, length, words, size = [], 0, 0, 0
        if pieces:
            yield pieces, words, size

    def _join(self) -> None:
        """Joins all blocks into one file, in the first process that gets here; other processes wait for it."""
        with self._alone(_JOIN, wait=True):
            if self.read() is not None:
                return
            path, counts = self.folder / "tokens.bin", [0, 0, 0]
            beside = path.with_name(f".tokens.{os.getpid()}")
            for leftover in self.folder.glob(".tokens.*"):  # left by a process that was killed while joining
                leftover.unlink(missing_ok=True)
            with beside.open("wb") as file:
                for number in range(self.text.blocks):
                    with self._path(number).open("rb") as block:
                        here = [int(one) for one in np.fromfile(block, np.uint64, 3)]
                        shutil.copyfileobj(block, file, 2**20)
                    counts = [one + more for one, more in zip(counts, here, strict=True)]
                file.flush()
                os.fsync(file.fileno())
            # After a power failure a block may be shorter than its header says; then all blocks are made again.
            if beside.stat().st_size != counts[0] * np.dtype(self.stored).itemsize:
                shutil.rmtree(self.blocks, ignore_errors=True)
                beside.unlink()
                return
            beside.replace(path)
            told: dict[str, Any] = dict(zip(("count", "words", "size"), counts, strict=True))
            _write(self.folder / "tokens.json", told | {"stored": self.stored})
            shutil.rmtree(self.blocks, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self, number: int, wait: bool = False) -> Iterator[bool]:
        """Locks a block and yields whether that worked; on a file system without locks it always seems to."""
        with (self.folder / "locks").open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    yield False
                    return
            yield True


@contextlib.contextmanager
def _helpers(store: TokenStore, count: int) -> Iterator[None]:
    """While this context is open, `count` more processes make blocks; what they fail to make is left to this one."""
    count = min(count, store.text.blocks - 1)
    if count < 1:
        yield
        return
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked process does not have the threads of its parent
    context = multiprocessing.get_context("fork")
    helpers = [context.Process(target=_help, args=(store, os.getpid()), daemon=True) for _ in range(count)]
    try:
        for helper in helpers:
            helper.start()
        yield
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    finally:
        for helper in helpers:
            helper.join()
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _help(store: TokenStore, parent: int) -> None:
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(one, signal.SIG_DFL)
    make = store._make

    def while_wanted(number: int) -> None:
        if os.getppid() != parent:
            os._exit(1)
        make(number)

    store._make = while_wanted  # type: ignore[method-assign]
    with contextlib.suppress(Refusal, OSError):  # the main process meets the same error and reports it
        store.make()


def trained_once(folder: Path, text: StreamedText, vocabulary: int, train: Callable[[Any, int], Any]) -> Any:
    """The tokenizer that `train` makes from the text, or from a sample of a large one; it is stored and reused."""
    known = [_FORMAT, "byte pairs", text.stamp, vocabulary]
    place = folder / f"tokenizer-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("a") as lock:
        with contextlib.suppress(OSError):
            fcntl.lockf(lock, fcntl.LOCK_EX)
        if not (place / "whole").is_file():
            train(text if text.size <= WHOLE else text.sample(SAMPLE), vocabulary).save_pretrained(place)
            (place / "whole").touch()
        return load_tokenizer(str(place), "data.tokenizer")


def fingerprint_once(folder: Path, start: str, arrays: tuple[Any, ...]) -> str:
    """The sha256 of these arrays in hex digits, stored because it requires reading all mapped tokens once."""
    kept = folder / "fingerprints" / short_digest(start, arrays)
    with contextlib.suppress(OSError):
        if len(found := kept.read_text(encoding="utf-8")) == 64:
            return found
    digest = hashlib.sha256(start.encode())
    for array in arrays:
        add_to_digest(digest, array)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f".{kept.name}.{os.getpid()}")
        beside.write_text(digest.hexdigest(), encoding="utf-8")
        beside.replace(kept)
    return digest.hexdigest()


def _digest_of(tokenizer: Any) -> str:
    return hashlib.sha256(f"{type(tokenizer).__name__} {tokenizer.backend_tokenizer.to_str()}".encode()).hexdigest()


def _drops_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space in front of every text.

    If so, a piece that continues a line must not begin with a space of its own.
    """

    def of(*texts: str) -> list[int]:
        return [token for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in row]

    whole = of("the cat sat")
    return whole != of("the", " cat sat") and whole == of("the", "cat sat")


def _write(path: Path, values: dict[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(values), encoding="utf-8")
    beside.replace(path)
