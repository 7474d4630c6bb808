"""Tables of texts from files: CSV, TSV, JSON lines and parquet; every value is kept as the text in the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdp.errors import Refusal
from pdp.wording import nearest, one_line

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
_PARQUET = (".parquet", ".pq")
_DELIMITERS = (",", ";", "\t", "|")
Value = str | None  # None: the file has no value there


@dataclass
class Table:
    """Columns of equal length by name, with values as texts or None, and a count of the rows left out, by reason."""

    columns: dict[str, list[Value]]
    left_out: Counter[str] = field(default_factory=Counter)
    twice: frozenset[str] = frozenset()  # names that more than one column has; such columns are not in `columns`

    def column(self, names: Sequence[str], place: str, key: str) -> list[Value]:
        """The first of `names` that exists as a column; raises `Refusal` naming `key` if none does."""
        for name in names:
            if name in self.columns:
                return self.columns[name]
        if self.twice.intersection(names):
            raise Refusal(
                f"{place} has several columns {' or '.join(names)}: give each a name of its own, or set {key}"
            )
        near = nearest(names[0], self.columns)
        question = f"; did you mean {' or '.join(near)}?" if near else ""
        known = ", ".join(self.columns)
        raise Refusal(f"{place} has no column {' or '.join(names)}{question} it has {one_line(known)[:150]}: set {key}")


def read_table(
    paths: Sequence[Path], wanted: Sequence[str], key: str, header: Sequence[str] = (), plain: bool = False
) -> Table:
    """The rows of all files, one file after the other; raises `Refusal` naming `key`.

    The delimiter of a CSV file is the one that yields the `wanted` columns. With `plain` the files are in GLUE's
    format: quotes are ordinary characters, parquet's class names become numbers, and `header` gives the column names
    for files without a header line.
    """
    whole = Table({})
    for path in paths:
        table = _read(path, wanted, key, header, plain)
        if not whole.columns:
            whole = table
            continue
        if table.columns.keys() != whole.columns.keys():
            raise Refusal(f"{path} has other columns than {paths[0]}: set {key}")
        for name, values in table.columns.items():
            whole.columns[name] += values
        whole.left_out += table.left_out
    return whole


def _read(path: Path, wanted: Sequence[str], key: str, header: Sequence[str], plain: bool) -> Table:
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if suffix not in SUFFIXES or (packed and suffix in _PARQUET):
        raise Refusal(f"{path} is of an unknown kind: give {key}=<a file that ends in {', '.join(SUFFIXES)}>")
    try:
        if suffix in _PARQUET:
            return _read_parquet(path, wanted, plain)
        content = path.read_bytes()
        text = _decode(gzip.decompress(content) if packed else content)
        if not text.strip():
            raise ValueError("it is empty")
        if suffix in (".jsonl", ".ndjson", ".json"):
            return _from_records(_json_records(text))
        if plain:
            return _from_rows(_lines(text), "\t", header)
        return _read_delimited(text, wanted, tabs=suffix in (".tsv", ".tab"))
    except (OSError, EOFError, ValueError, csv.Error, zlib.error, RecursionError, MemoryError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise Refusal(f"{path} cannot be read ({words[:160]}): set {key}") from None


def _decode(content: bytes) -> str:
    """Decodes UTF-8, or UTF-16 with a byte order mark; raises `ValueError` with the line of the first invalid byte."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        text = content.decode("utf-8-sig")
        return text if "\n" in text else text.replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"byte 0x{content[error.start]:02x} in line {line} is not UTF-8; save it as UTF-8") from None


# --------------------------------------------------------------------------------------------------- rows of fields


def _lines(text: str) -> list[list[str]]:
    """One row per line with fields separated by tabs; a carriage return belongs to the line's end."""
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]


def _read_delimited(text: str, wanted: Sequence[str], tabs: bool) -> Table:
    delimiter = "\t" if tabs else _delimiter(text, wanted)
    if delimiter == "\t":
        # Most programs write TSV without quoting, so a text may begin with a quote. If every line then has as many
        # fields as the header, the file is read that way; otherwise quoted fields may contain tabs and line ends.
        rows = _lines(text)
        if all(len(row) == len(rows[0]) for row in rows):
            return _from_rows([[_unquoted(one) for one in row] for row in rows], delimiter)
        try:
            quoted = _fields(text, delimiter)
        except csv.Error:
            return _from_rows(rows, delimiter)
        misfits = [sum(len(row) != len(rows[0]) for row in some) for some in (rows, quoted)]
        return _from_rows(quoted if misfits[1] < misfits[0] else rows, delimiter)
    return _from_rows(_fields(text, delimiter), delimiter)


def _delimiter(text: str, wanted: Sequence[str]) -> str:
    """The delimiter with the most wanted columns in the header; among equals the one with the most columns."""
    lines = text.lstrip("\ufeff\r\n").splitlines()
    found = {}
    for delimiter in _DELIMITERS:
        try:
            names = [name.strip() for name in next(csv.reader(lines, delimiter=delimiter), [])]
        except csv.Error:
            continue
        found[delimiter] = (sum(name in names for name in wanted), len(names))
    return max(found, key=lambda one: found[one], default=",")


def _fields(text: str, delimiter: str) -> list[list[str]]:
    """Rows as the csv module reads them in strict mode: a quote left open would swallow the rows after it.

    Raises `csv.Error`.
    """
    before = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [row for row in reader if row and (len(row) > 1 or row[0].strip())]
    except csv.Error as error:
        words = "a quote is not closed" if "end of data" in str(error) else str(error).replace("'", "")
        raise csv.Error(f"line {reader.line_num}: {words}; double the quotes inside of quoted texts") from None
    finally:
        csv.field_size_limit(before)


def _unquoted(value: str) -> str:
    inner = value[1:-1]
    whole = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else value


def _from_rows(rows: list[list[str]], delimiter: str, header: Sequence[str] = ()) -> Table:
    names = [name.strip() for name in header or rows[0]]
    rows = rows if header else rows[1:]
    whole = []
    left_out: Counter[str] = Counter()
    for row in rows:
        if len(row) > len(names) and not any(one.strip() for one in row[len(names) :]):
            row = row[: len(names)]  # extra delimiters at the end of a line
        if len(row) == len(names):
            whole.append(row)
        else:
            # It is unknown which field belongs to which column: a label might be another column's text.
            left_out["too many fields" if len(row) > len(names) else "too few fields"] += 1
    twice = {name for name, count in Counter(names).items() if count > 1}
    columns: dict[str, list[Value]] = {}
    for number, name in enumerate(names):
        if name not in twice:
            columns[name] = [row[number] if row[number].strip() else None for row in whole]
    return Table(columns, left_out, frozenset(twice))


# ---------------------------------------------------------------------------------------------------------- records


def _json_records(text: str) -> list[dict[str, Any]]:
    """One record per line, or one list of records; numbers stay as they are spelled in the file."""

    def loads(part: str) -> Any:
        return json.loads(part, parse_float=str, parse_int=str, parse_constant=lambda _: None)

    if text.lstrip().startswith("["):
        records = loads(text)
        lines = range(1, len(records) + 1)
    else:
        numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        records, lines = [], [number for number, _ in numbered]  # type: ignore[assignment]
        for number, line in numbered:
            try:
                records.append(loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from None
    for number, record in zip(lines, records, strict=True):
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is no record such as {{...}}")
    return records


def _from_records(records: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for record in records for name in record))
    return Table({name: texts_of([record.get(name) for record in records]) for name in names})


def _read_parquet(path: Path, wanted: Sequence[str], plain: bool) -> Table:
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features

    try:
        schema = pq.read_schema(path)
        known = [name for name in schema.names if name in wanted] or schema.names
        table = pq.read_table(path, columns=known)
        features = Features.from_arrow_schema(schema)
    except Exception as error:  # pyarrow raises many types of exceptions for damaged files
        raise ValueError(f"{type(error).__name__}: {one_line(error)}") from None
    columns = {}
    for name in known:
        values = table.column(name).to_pylist()
        kind = features.get(name)
        if isinstance(kind, ClassLabel) and not plain:
            count = len(kind.names or ())
            values = [kind.names[one] if isinstance(one, int) and 0 <= one < count else None for one in values]
        columns[name] = texts_of(values)
    return Table(columns | {name: [None] * table.num_rows for name in schema.names if name not in columns})


def texts_of(values: Iterable[Any]) -> list[Value]:
    """Values as texts: whole numbers without a decimal point, NaN as None; lists and records stay as they are."""
    return [_text(one) for one in values]


def _text(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list | dict | tuple | bytes | set):
        return value
    return str(value)
