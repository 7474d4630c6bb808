"""The user's own tables of texts: which columns are used, which classes there are, and what is held out for testing."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pdp.errors import Refusal
from pdp.tasks.examples import Examples, make_examples
from pdp.tasks.sampling import keeping_split
from pdp.tasks.tables import read_table
from pdp.wording import one_line

TEST_SHARE = 0.2  # share of the training rows that becomes the test set if no test file is given
_MANY = 20  # a column with more different values may not be a column of classes
_DECIMAL_COMMA = re.compile(r"^\s*([+-]?\d+),(\d{1,2})\s*$")  # not 1,000, which may mean one thousand
_KEYS = ("train", "validation_file", "test")


@dataclass
class OwnTexts:
    """The parts of a user's table; `labels` are the class names in the order of their numbers, empty for a score."""

    train: Examples | None
    validation: Examples | None
    test: Examples
    labels: tuple[str, ...]
    notes: list[str] = field(default_factory=list)
    shift: float = 0.0  # the model learns (score - shift) / scale
    scale: float = 1.0


def read_own_texts(data: Any, scale: Sequence[float] | None = None) -> OwnTexts:
    """Reads the files that `data` names; raises `Refusal`, in one line that names the key to change.

    `scale` is the shift and scale of scores that a model has learnt; without it they are the training rows'.
    """
    paths = {key: _place(data, key) for key in _KEYS if getattr(data, key)}
    _check_apart(paths)
    tables = {key: _columns(data, key, path) for key, path in paths.items()}
    parts, labels = _scored(data, tables, paths) if data.score else _classified(data, tables, paths)
    train, test, notes = parts.get("train"), parts.get("test"), []
    if test is None:
        assert train is not None
        test, train = _hold_out(train, data.train)
        notes.append(
            f"without data.test, {TEST_SHARE:.0%} of the rows are the test set by a fixed split".replace("%", " %")
        )
    found = OwnTexts(train, parts.get("validation_file"), test, labels, notes)
    if data.score:
        of = (train or test).labels
        found.shift, found.scale = scale or (float(of.mean()), float(of.std()))
        for part in (found.train, found.validation, found.test):
            if part is not None:
                part.labels = (part.labels - found.shift) / found.scale
        found.notes.append(f"scores are learnt as (score - {found.shift:.6g}) / {found.scale:.6g}")
    return found


def _place(data: Any, key: str) -> Path:
    given = getattr(data, key)
    path = Path(os.path.expanduser(data.root or ""), os.path.expanduser(given))
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        under = f" under data.root={data.root}" if data.root and not Path(given).is_absolute() else ""
        raise Refusal(f"data.{key}={given} {kind}{under}: give data.{key}=<a file of rows>")
    return path


def _check_apart(paths: dict[str, Path]) -> None:
    names = list(paths)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if paths[one].samefile(paths[other]):
                raise Refusal(
                    f"data.{one} and data.{other} are the same file, {paths[one]}: drop data.{other}, and a share "
                    "of the rows is held out"
                )


def _columns(data: Any, key: str, path: Path) -> tuple[list[list[Any]], list[Any], Counter[str]]:
    """The texts and targets of one file, and a count of the rows left out, by reason."""
    target = data.score or data.label
    table = read_table([path], (*data.text, target), f"data.{key}")
    target_key = "data.score" if data.score else "data.label"
    texts = [table.column([name], str(path), "data.text") for name in data.text]
    if target not in table.columns and target not in table.twice and key != "train":
        raise Refusal(
            f"data.{key}={path} has no column {target} ({target_key}): give a file that has it, or drop data.{key}"
        )
    targets = table.column([target], str(path), target_key)
    for name, values, of in [(n, v, "data.text") for n, v in zip(data.text, texts, strict=True)] + [
        (target, targets, target_key)
    ]:
        if any(value is not None and not isinstance(value, str) for value in values):
            raise Refusal(f"{path}: the column {name} holds lists, records or bytes and no texts: set {of}")
    if not targets:
        raise Refusal(f"{path} has no row below its header{_said(table.left_out)}: set data.{key}")
    return texts, targets, table.left_out


def _said(left_out: Counter[str]) -> str:
    return f" that has its fields ({', '.join(f'{n} {why}' for why, n in left_out.items())})" if left_out else ""


def _scored(data: Any, tables: dict[str, Any], paths: dict[str, Path]) -> tuple[dict[str, Examples], tuple[str, ...]]:
    parts = {}
    for key, (texts, targets, left_out) in tables.items():
        scores = [number(value) for value in targets]
        if all(score is None for score in scores):
            first = next((one for one in targets if one is not None), None)
            seen = f"; the first is {one_line(first)[:40]!r}" if first is not None else ""
            raise Refusal(
                f"{paths[key]}: the column {data.score} holds no number{seen}: set data.score, or give "
                f"data.label={data.score} in its place"
            )
        parts[key] = make_examples(texts, scores, "score", left_out, str(paths[key]), f"data.{key}")
    of = parts.get("train") or parts["test"]
    if np.ptp(of.labels) == 0:
        raise Refusal(f"the column {data.score} holds {of.labels[0]:g} in every row: set data.score")
    return parts, ()


def _classified(
    data: Any, tables: dict[str, Any], paths: dict[str, Path]
) -> tuple[dict[str, Examples], tuple[str, ...]]:
    named = {key: [None if one is None else one.strip() for one in table[1]] for key, table in tables.items()}
    everything = {one for values in named.values() for one in values if one is not None}
    if everything and all(number(one) is not None for one in everything):
        # Numeric labels: 1, 1.0 and 01 are the same class, and 10 is sorted after 9.
        named = {key: [None if one is None else _plain(one) for one in values] for key, values in named.items()}
    source = "train" if "train" in tables else "test"
    texts = tables[source][0]
    # Only rows that have their texts determine the classes.
    seen = Counter(
        one
        for position, one in enumerate(named[source])
        if one is not None and all(column[position] is not None for column in texts)
    )
    labels = tuple(sorted(seen, key=lambda one: (number(one) if number(one) is not None else math.inf, one)))
    _check_classes(data, labels, seen, paths[source])
    numbers = {name: position for position, name in enumerate(labels)}
    parts = {}
    for key, (texts, _, left_out) in tables.items():
        _check_known(data, named[key], numbers, paths, key, source)
        values: Sequence[float | None] = [None if one is None else numbers.get(one) for one in named[key]]
        parts[key] = make_examples(texts, values, "label", left_out, str(paths[key]), f"data.{key}")
    return parts, labels


def _check_classes(data: Any, labels: tuple[str, ...], seen: Counter[str], path: Path) -> None:
    rows, said = seen.total(), f"{path}: the column {data.label}"
    if len(labels) == 1:
        raise Refusal(
            f"{said} says {one_line(labels[0])[:40]} in every row, and two classes are needed: set data.label"
        )
    if len(labels) > max(_MANY, rows / 2):
        numeric = all(number(one) is not None for one in labels)
        cure = f", or give data.score={data.label} in its place for a score" if numeric else ""
        raise Refusal(
            f"{said} holds {len(labels):,} different values in {rows:,} rows, too many for classes: "
            f"set data.label{cure}"
        )


def _check_known(
    data: Any, values: Sequence[str | None], numbers: dict[str, int], paths: dict[str, Path], key: str, source: str
) -> None:
    unknown = Counter(one for one in values if one is not None and one not in numbers)
    # In the training file itself, labels are unknown only if all their rows lack a text; those rows are left out.
    if key == source or not unknown:
        return
    names = ", ".join(f"{one_line(name)[:40]} ({count:,} rows)" for name, count in unknown.most_common(3))
    more = ", ..." if len(unknown) > 3 else ""
    raise Refusal(
        f"data.{key}={paths[key]} has labels that data.{source} lacks: {names}{more}; known: "
        f"{one_line(', '.join(list(numbers)[:10]))}: change data.{key} or data.label"
    )


def _hold_out(train: Examples, name: str) -> tuple[Examples, Examples]:
    """The held-out test set and the remaining training rows; raises `Refusal` if there are too few rows."""
    kept, held = keeping_split(train.classes, TEST_SHARE, salt=1)
    if not (len(kept) and len(held)):
        raise Refusal(
            f"data.train={name} has {len(train)} usable row(s), too few to hold out a test set: give data.test"
        )
    rest = train.chosen(kept)
    rest.reasons = train.reasons
    return train.chosen(held), rest


def number(value: str | None) -> float | None:
    """The finite number that a text spells; None for any other text."""
    if value is None or "_" in value:
        return None
    try:
        found = float(_DECIMAL_COMMA.sub(r"\1.\2", value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _plain(value: str) -> str:
    found = number(value)
    assert found is not None
    return str(int(found)) if found.is_integer() and abs(found) < 1e15 else repr(found)
