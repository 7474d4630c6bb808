"""Generated parts of hand-written pages: only the text between two marks is replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pdp.errors import Refusal

_BLOCK = re.compile(r"(<!-- generated: ([\w ]+); python scripts/cards\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, blocks: Mapping[str, str], place: str) -> str:
    """The page with its marked blocks replaced by `blocks`; raises `Refusal` if marks and blocks do not correspond."""
    named = [match[2] for match in _BLOCK.finditer(page)]
    if sorted(named) != sorted(blocks):
        raise Refusal(f"{place}: its marked blocks are {', '.join(named) or 'none'}, they must be {', '.join(blocks)}")
    return _BLOCK.sub(lambda match: f"{match[1]}\n{blocks[match[2]]}\n{match[3]}", page)


def mark(name: str) -> str:
    """An empty marked block, for a new page."""
    return f"<!-- generated: {name}; python scripts/cards.py -->\n<!-- end -->"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, ending with a newline."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
