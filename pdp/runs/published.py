"""Published numbers, results/published.csv: each with its source, and with MACs converted to one convention."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pdp.errors import Refusal

COLUMNS = (
    *("method", "label", "model", "data", "pattern", "sparsity", "macs", "mac_convention"),
    *("metric_name", "value", "epochs", "source", "verified"),
)
CONVENTIONS = ("mac", "mac+pool", "flop")
MARKS = ("yes", "third party", "no")  # read in the source itself; quoted by others; neither
# Additions of the average pool before the classifier, channels x 7 x 7, which STR counts as well.
POOL = {"resnet50": 100_352}
NEAR = 0.005  # a published sparsity belongs to a target at most half a point away
NEAR_MACS = 0.05  # the same for MACs, as a share of the dense model's
_NEVER_EMPTY = ("method", "label", "model", "data", "metric_name", "source")
_RAW = ("perplexity", "loss")  # metrics that are not fractions
_PATTERN = re.compile(r"random|channel|none|\d+:\d+")


def load_published(path: Path | str) -> pd.DataFrame:
    """The table with the file's columns, and `macs_published` besides `macs`.

    `macs` counts multiply-adds of convolution and linear layers: flop = 2 x mac is halved, and mac+pool is reduced by
    the average pool's additions; `macs_published` is the number in the source. Both, `sparsity` and `epochs` are NaN if
    unknown. Raises `Refusal`, naming the line of the file and the column, for a row without a source, an unknown
    convention, mark or pattern, and a percentage instead of a fraction.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if tuple(lines.fieldnames or ()) != COLUMNS:
                raise Refusal(f"{path}: its first line must be {','.join(COLUMNS)}")
            rows = [_Row(path, lines.line_num, values).read() for values in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refusal(f"{path} cannot be read ({error}): give a table of published numbers") from None
    return pd.DataFrame(rows, columns=[*COLUMNS, "macs_published"])


def published_method(method: str, variant: str | None) -> str:
    """The name in the table of a method of ours; there, soft movement pruning has a name of its own."""
    return f"{method}_{variant}" if (method, variant) == ("movement", "soft") else method


def near_target(rows: pd.DataFrame, target: float, of_macs: bool, dense_macs: float) -> pd.DataFrame:
    """Rows with about this target: a sparsity, or with `of_macs` the share of the dense model's MACs removed."""
    if of_macs:
        return rows[(rows.macs / dense_macs - (1 - target)).abs() <= NEAR_MACS]
    return rows[(rows.sparsity - target).abs() <= NEAR + 1e-9]


class _Row:
    """One line of the file while it is converted to values."""

    def __init__(self, path: Path, line: int, values: dict[str, Any]):
        self.place = f"{path} row {line}"
        self.values = values

    def read(self) -> dict[str, Any]:
        # DictReader stores surplus cells under None and fills missing ones with None.
        if None in self.values or None in self.values.values():
            raise Refusal(f"{self.place} has not {len(COLUMNS)} cells: one for each of {', '.join(COLUMNS)}")
        row: dict[str, Any] = {key: value.strip() for key, value in self.values.items()}
        for key in _NEVER_EMPTY:
            if not row[key]:
                raise self.wrong(key, row[key], "must not be empty")
        self.among("verified", row["verified"], MARKS)
        if not _PATTERN.fullmatch(row["pattern"]):
            raise self.wrong("pattern", row["pattern"], "give random, channel, none or N:M such as 2:4")
        row["sparsity"] = self.number("sparsity", lambda value: 0 <= value < 1, "a fraction from 0 to below 1")
        raw = row["metric_name"] in _RAW
        words = "a number above 0" if raw else "a fraction from 0 to 1"
        row["value"] = self.number(
            "value", (lambda value: value > 0) if raw else (lambda value: 0 <= value <= 1), words
        )
        if math.isnan(row["value"]):
            raise self.wrong("value", "", "must not be empty")
        row["epochs"] = self.number("epochs", lambda value: value >= 1 and value == int(value), "a whole number")
        row["macs_published"] = self.number("macs", lambda value: value >= 1000, "a count in units of one")
        row["macs"] = self.multiply_adds(row)
        return row

    def multiply_adds(self, row: dict[str, Any]) -> float:
        """This row's count in multiply-adds of convolution and linear layers."""
        convention, macs = row["mac_convention"], row["macs_published"]
        if math.isnan(macs):
            if convention:
                raise self.wrong("mac_convention", convention, "leave it empty where macs is")
            return macs
        self.among("mac_convention", convention, CONVENTIONS)
        if convention == "flop":
            return macs / 2
        if convention == "mac+pool":
            if row["model"] not in POOL:
                raise self.wrong("mac_convention", convention, f"the pool of {', '.join(POOL)} alone is known")
            return macs - POOL[row["model"]]
        return macs

    def number(self, key: str, holds: Callable[[float], bool], words: str) -> float:
        """A cell as a number; NaN if it is empty."""
        text = self.values[key].strip()
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            raise self.wrong(key, text, f"give {words}") from None
        if not math.isfinite(value) or not holds(value):
            percent = "fraction" in words and 1 < value <= 100
            hint = f"; did you mean {round(value / 100, 10):g}?" if percent else ""
            raise self.wrong(key, text, f"give {words}{hint}")
        return value

    def among(self, key: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise self.wrong(key, value, f"give one of {', '.join(allowed)}")

    def wrong(self, key: str, value: str, words: str) -> Refusal:
        return Refusal(f"{self.place}, column {key}: {value!r}; {words}")
