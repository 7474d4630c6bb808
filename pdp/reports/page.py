"""Shared by the dashboard and the report: a single HTML file with its style inside, which loads nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5em auto; max-width: 80em; color: #222; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; border-bottom: 1px solid #ccc; margin-top: 2em }
h3 { font-size: 1.05em } p, li { max-width: 52em; overflow-wrap: anywhere }
.wide { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: 13px } th, td { padding: .2em .7em; text-align: right }
th { border-bottom: 1px solid #888 } tr:nth-child(even) { background: #f5f5f5 } td { white-space: nowrap }
th:first-child, td:first-child, .words td { text-align: left } .words td { white-space: normal; min-width: 5em }
article table { display: block; overflow-x: auto } article td, article th { text-align: left; white-space: normal }
article td { min-width: 9em }
svg { max-width: 100%; height: auto } figure { margin: 1em 0 } figcaption { color: #555; max-width: 52em }
.sortable th { cursor: pointer; white-space: nowrap } .sortable th[aria-sort=ascending]::after { content: " ▲" }
.sortable th[aria-sort=descending]::after { content: " ▼" }
.row { display: flex; flex-wrap: wrap } pre { overflow-x: auto; background: #f5f5f5; padding: .6em }
progress { width: 9em } .quiet { color: #666 } nav { columns: 18em; font-size: 14px } nav a { display: block }
@media (max-width: 40em) { body { margin: .5em auto; padding: 0 .6em } figure { overflow-x: auto }
  figure svg { min-width: 34em } th:first-child, td:first-child { position: sticky; left: 0; background: #fff }
  figure:has(svg)::after { content: "scroll sideways: the figure goes on to the right"; color: #666; font-size: 12px;
    display: block; position: sticky; left: 0 }
  td:first-child { white-space: normal; min-width: 6em; max-width: 10em; overflow-wrap: anywhere } }
"""

# Numbers are compared as numbers despite signs and units; headings can be reached by the keyboard too.
_SORT = """
const number = text => { const found = text.replace(/,/g, '').match(/^-?[0-9.]+(e[-+]?[0-9]+)?/i);
  return found ? parseFloat(found[0]) : NaN };
for (const head of document.querySelectorAll('table.sortable th')) {
  head.tabIndex = 0;
  const sort = () => {
    const table = head.closest('table'), body = table.tBodies[0], column = head.cellIndex;
    const up = head.getAttribute('aria-sort') !== 'ascending';
    for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => row.cells[column].textContent.trim();
    const compare = (a, b) => { const [x, y] = [number(key(a)), number(key(b))];
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || key(a).localeCompare(key(b)) : x - y };
    const rows = [...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a));
    body.append(...rows);
  };
  head.addEventListener('click', sort);
  head.addEventListener('keydown', event => { if (event.key === 'Enter') sort() });
}
"""


def document(title: str, body: str, refresh: int | None = None) -> str:
    """The whole page; a browser reloads it every `refresh` seconds."""
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'<meta charset="utf-8">{view}{again}<title>{html.escape(title)}</title><style>{_STYLE}</style>'
    script = f"<script>{_SORT}</script>" if "class=sortable" in body else ""
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}{script}</body></html>\n"


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], escape: bool = True, words: bool = False, sortable: bool = False
) -> str:
    """A table with its own scroll bar if it is too wide.

    `words`: its cells are text with line breaks; `sortable`: a click on a heading sorts by it, a second click reverses.
    """
    clean = html.escape if escape else str
    lines = ["".join(f"<th>{html.escape(one)}</th>" for one in head)]
    lines += ["".join(f"<td>{clean(str(one))}</td>" for one in row) for row in rows]
    kind = "wide words" if words else "wide"
    body = "".join(f"<tr>{line}</tr>" for line in lines[1:])
    inside = f"<thead><tr>{lines[0]}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="{kind}"><table{" class=sortable" if sortable else ""}>{inside}</table></div>'


def write(text: str, target: Path) -> None:
    """Writes a page atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)
