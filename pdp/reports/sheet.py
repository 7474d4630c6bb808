"""A table before it becomes Markdown, LaTeX or CSV: sections of rows, notes, and numbered footnotes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "≤": r"$\le$", "–": "--", "×": r"$\times$", "²": r"$^2$",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column's heading and alignment."""

    heading: str
    right: bool = True


@dataclass
class Section:
    """Rows under one title; every row has one text per column of the sheet."""

    title: str
    rows: list[list[str]]


@dataclass
class Sheet:
    """One table: the texts in `sections`, and the same as raw fractions in `frame`, with one row per cell."""

    name: str
    title: str
    columns: list[Column]
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    frame: pd.DataFrame = field(default_factory=pd.DataFrame)
    footnotes: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The mark of a footnote; equal texts share a mark."""
        if text not in self.footnotes:
            self.footnotes.append(text)
        return f"[{self.footnotes.index(text) + 1}]"


def percent(share: float, digits: int = 2) -> str:
    """A fraction in percent; empty for NaN."""
    return "" if _missing(share) else f"{100 * share:.{digits}f} %"


def target(share: float) -> str:
    """A target sparsity in percent, with only as many digits as it has."""
    return f"{round(100 * share, 4):g} %"


def is_fraction(metric_name: str) -> bool:
    """Whether a metric is shown in percent; perplexities and losses are raw."""
    return not metric_name.startswith(("perplexity", "loss"))


def is_better(metric_name: str) -> int:
    """1 if a higher metric is better, -1 if a lower one is."""
    return 1 if is_fraction(metric_name) else -1


def score(metric_name: str, value: float, half: float = math.nan, sign: bool = False) -> str:
    """A metric with half its interval, 93.00 ± 1.20 %; with `sign` a difference in points, +0.31 ± 0.20."""
    if _missing(value):
        return ""
    scale, digits = (100, 2) if is_fraction(metric_name) else (1, 3)
    number = f"{scale * value:{'+' if sign else ''}.{digits}f}"
    if float(number) == 0:
        number = number.lstrip("+-")  # no sign before zero
    spread = "" if _missing(half) else f" ± {scale * half:.{digits}f}"
    return f"{number}{spread}{' %' if scale == 100 and not sign else ''}"


def count(number: float) -> str:
    """A number of MACs or parameters: in millions with two digits, or whole if it is smaller."""
    if _missing(number):
        return ""
    return f"{number / 1e6:,.2f} M" if abs(number) >= 1e5 else f"{number:,.0f}"


def p_value(value: float) -> str:
    """Three decimals, but never 0."""
    if _missing(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _missing(value: float) -> bool:
    return value is None or math.isnan(value)


# ------------------------------------------------------------------------------------------------------------ formats


def as_csv(sheet: Sheet) -> str:
    """One row per cell, with raw fractions and ten significant digits, because the last bits depend on the machine."""
    return sheet.frame.to_csv(index=False, float_format="%.10g", lineterminator="\n")


def as_markdown(sheet: Sheet) -> str:
    """The sheet as Markdown."""
    parts = [f"# {sheet.title}\n"]
    parts += [f"{note}\n" for note in sheet.notes]
    heads = [column.heading for column in sheet.columns]
    rules = ["---:" if column.right else "---" for column in sheet.columns]
    for section in sheet.sections:
        lines = [heads, rules, *section.rows]
        body = [rules if line is rules else [_for_markdown(text) for text in line] for line in lines]
        parts.append(f"## {_for_markdown(section.title)}\n")
        parts.append("".join(f"| {' | '.join(line)} |\n" for line in body))
    if sheet.footnotes:
        parts.append(
            "".join(f"- [{number + 1}] {_for_markdown(text)}\n" for number, text in enumerate(sheet.footnotes))
        )
    return "\n".join(parts)


def as_latex(sheet: Sheet) -> str:
    """One `table` per section, with booktabs; graphicx makes wide tables fit."""
    spec = "".join("r" if column.right else "l" for column in sheet.columns)
    head = " & ".join(latex(column.heading) for column in sheet.columns)
    parts = [f"% {sheet.title}. Made by scripts/tables.py; needs booktabs and graphicx.\n"]
    for number, section in enumerate(sheet.sections):
        body = "".join(" & ".join(latex(text) for text in row) + " \\\\\n" for row in section.rows)
        used = sorted({int(one) for row in section.rows for text in row for one in re.findall(r"\[(\d+)\]", text)})
        notes = [latex(note) for note in sheet.notes]
        notes += [f"[{one}] {latex(sheet.footnotes[one - 1])}" for one in used if one <= len(sheet.footnotes)]
        below = "".join(f"\\par\\footnotesize {note}\n" for note in notes)
        label = re.sub(r"[^a-z0-9]+", "-", f"{sheet.name}-{number + 1}")
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{latex(sheet.title)}: {latex(section.title)}}}\n"
            f"\\label{{tab:{label}}}\n\\resizebox{{\\textwidth}}{{!}}{{%\n\\begin{{tabular}}{{{spec}}}\n\\toprule\n"
            f"{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}}}\n{below}\\end{{table}}\n"
        )
    return "\n".join(parts)


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and minus signs before numbers."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)


def _for_markdown(text: str) -> str:
    # Backslashes make names plain text, neither columns nor markup.
    return re.sub(r"([\\|<>*_`])", r"\\\1", text)


def heading(*parts: str) -> str:
    """A section's title, joined from the parts that are not empty."""
    return ", ".join(part for part in parts if part)


def columns(left: Sequence[str], right: Sequence[str]) -> list[Column]:
    """Columns of text (left aligned), then columns of numbers (right aligned)."""
    return [*(Column(one, right=False) for one in left), *(Column(one) for one in right)]
