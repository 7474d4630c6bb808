"""Running text for train, validation and test: Python's own docstrings, WikiText, any files; large ones in pieces."""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdp.errors import Refusal
from pdp.tasks.glue import load_from_hub
from pdp.tasks.grammar_nli import generate
from pdp.tasks.text_streams import LARGE, FileText, RowsText, StreamedText, unreadable

HUB = "Salesforce/wikitext"
_NOT_THE_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}
VALIDATION = "valid*.*"
_TENTHS = 10  # one tenth of the library's modules is the test part, another tenth the validation part


Text = list[str] | StreamedText


@dataclass
class Corpus:
    """Lines of text, each with its line end (blank lines are empty); `validation` None takes a share of train."""

    train: Text | None
    validation: Text | None
    test: Text


def written(lines: list[str]) -> list[str]:
    """The lines that are not blank."""
    return [line for line in lines if line]


def joined(lines: list[str]) -> str:
    """All lines as one text with blank lines between them, as in Hugging Face's guide to perplexity on WikiText."""
    return "\n\n".join(lines)


def words(lines: list[str]) -> int:
    """The number of words, separated by white space; line ends do not count."""
    return sum(len(line.split()) for line in lines)


def read_docstrings() -> Corpus:
    """The docstrings of Python's standard library, split by module.

    A hash of its name decides whether a module belongs to train, validation or test. Raises `Refusal` where Python is
    installed without its source files.
    """
    return _read_docstrings(Path(sysconfig.get_paths()["stdlib"]))


@functools.cache  # seconds, which each run of a sweep in one process would take again
def _read_docstrings(root: Path) -> Corpus:
    parts: list[list[str]] = [[], [], []]
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _NOT_THE_LIBRARY & set(name.parts):
            continue
        tenth = hashlib.sha256(name.as_posix().encode()).digest()[0] % _TENTHS
        lines = parts[2 if tenth == 0 else 1 if tenth == 1 else 0]
        for text in _docstrings(path):
            lines += [f"{line}\n" for line in text.splitlines() if line.strip()]
    if not all(parts):
        raise Refusal(
            f"data=docstrings: Python's library in {root} has no docstrings: give data=text data.root=<folder>"
        )
    return Corpus(*parts)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop(0)
        text = ast.get_docstring(node)
        if text:
            yield text
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        waiting += [child for child in node.body if isinstance(child, kinds)]


def read_wikitext(name: str, root: str | None, streamed: bool = True) -> Corpus:
    """WikiText from wiki.{train,valid,test}.{tokens,raw} under `root`, or from the hub."""
    if root is None:
        asked = f"data=wikitext data.name={name}"
        hub_name = f"{name}-v1"
        parts = [load_from_hub(HUB, hub_name, part, asked) for part in ("train", "validation", "test")]
        return Corpus(*texts_of_rows(parts, "text", streamed))
    folder = _folder(root)
    folder = next((folder / one for one in (name, name.replace("-raw", "")) if (folder / one).is_dir()), folder)
    suffix = "raw" if name.endswith("-raw") else "tokens"
    files = [folder / f"wiki.{part}.{suffix}" for part in ("train", "valid", "test")]
    absent = [path.name for path in files if not path.is_file()]
    if absent:
        raise Refusal(
            f"data.root={root} has no {', '.join(absent)} of {name}: set data.root, or choose files with data=text "
            "data.name=<a name of its own> data.train_files=[...] data.test_files=[...]"
        )
    return Corpus(*_read(([path] for path in files), streamed))


def read_files(
    root: str, train: list[str], validation: list[str] | None, test: list[str], streamed: bool = True
) -> Corpus:
    """Text from files or glob patterns under `root`.

    With `validation` None the files valid*.* are the validation part, if there are any. Raises `Refusal` where a
    pattern matches no file.
    """
    folder = _folder(root)
    if validation is None:
        validation = [VALIDATION] if _matching(folder, VALIDATION) else []
    found = {}
    for key, patterns in (("train_files", train), ("validation_files", validation), ("test_files", test)):
        matching = {pattern: _matching(folder, pattern) for pattern in patterns}
        for pattern, files in matching.items():
            if not files:
                raise Refusal(
                    f"data.{key}: {pattern} matches no file in data.root={root}: change data.{key} or data.root"
                )
        found[key] = list(dict.fromkeys(path for files in matching.values() for path in files))
    if not found["test_files"]:
        raise Refusal(f"data.test_files is empty: give data.test_files=[<file in {root}>]")
    for one, other in (("train_files", "test_files"), ("train_files", "validation_files")):
        if twice := set(found[one]) & set(found[other]):
            raise Refusal(f"{min(twice)} is in data.{one} and in data.{other}: take it out of one of them")
    keys = ("train_files", "validation_files", "test_files")
    return Corpus(*_read((found[key] or None for key in keys), streamed))


def made_text() -> Corpus:
    """Sentences from the grammar, used where no text is available and any text will do."""
    lines = [f"{pair.premise} . {pair.hypothesis} .\n" for group in generate(1, 400) for pair in group]
    return Corpus(lines[:800], lines[800:1000], lines[1000:])


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError):
        raise Refusal(f"{pattern} is no pattern of files under data.root: give names such as 'train/*.txt'") from None


def _folder(root: str) -> Path:
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise Refusal(f"data.root={root} does not exist or is no folder: set data.root")
    return folder


def _read(parts: Iterable[list[Path] | None], streamed: bool) -> list[Any]:
    """The text of each part's files, None where there are none: in memory, or all in pieces where they are large."""
    given = list(parts)
    try:
        if streamed and sum(path.stat().st_size for paths in given for path in paths or ()) > LARGE:
            return [FileText(paths) if paths else None for paths in given]
    except OSError as error:
        raise Refusal(f"{error.filename} cannot be read ({error.strerror}): change data.root") from None
    return [_lines_of(paths) if paths else None for paths in given]


def _lines_of(paths: list[Path]) -> list[str]:
    lines: list[str] = []
    for path in paths:
        try:
            with path.open(encoding="utf-8") as file:
                lines += _lines(file)
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(path, error) from None
    return lines


def texts_of_rows(parts: list[Any], column: str, streamed: bool = True) -> list[Any]:
    """The same of a data set's parts, whose rows are lines."""
    if streamed and sum(rows.data.nbytes for rows in parts if rows is not None) > LARGE:
        return [None if rows is None else RowsText(rows, column) for rows in parts]
    return [None if rows is None else _lines(text or "" for text in rows[column]) for rows in parts]


def _lines(texts: Any) -> list[str]:
    return [f"{text.rstrip(chr(10) + chr(13))}\n" if text.strip() else "" for text in texts]
