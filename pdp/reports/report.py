"""Tables, figures and findings as one page that opens without a network."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from pdp.reports import page
from pdp.reports.figures import Drawn
from pdp.reports.look import as_svg
from pdp.reports.sheet import Sheet

_WORDS = ("hyperparameters",)  # sheets whose cells are text with line breaks


def report(prose: str, sheets: Sequence[Sheet], drawn: Sequence[Drawn], left_out: Sequence[str]) -> str:
    """The page; `prose` is Markdown without HTML."""
    places = [(sheet.name, sheet.title) for sheet in sheets] + [("figures", "Figures")]
    links = "".join(f'<a href="#{html.escape(name)}">{html.escape(title)}</a>' for name, title in places)
    prose = _prose(prose)
    for one in drawn:  # figures are part of the page, placed where the text names them
        picture = f"<figure>{_own_names(as_svg(one.figure), f'{one.name}-above')}</figure>"
        place = re.compile(rf'<p><img src="figures/{re.escape(one.name)}\.svg"[^>]*></p>')
        prose = picture.join(place.split(prose))
    for name, _ in places:  # tables are part of the page
        prose = prose.replace(f'href="tables/{name}.md"', f'href="#{html.escape(name)}"')
    parts = [prose, f"<h2>Contents</h2><nav>{links}</nav>"]
    parts += [_sheet(sheet) for sheet in sheets]
    parts.append('<h2 id="figures">Figures</h2>')
    for one in drawn:
        # Names inside an SVG are global in the page, so those of two figures must differ.
        parts.append(f"<figure>{_own_names(as_svg(one.figure), one.name)}")
        parts.append(f"<figcaption>{html.escape(one.caption)}</figcaption></figure>")
    parts += [f'<p class="quiet">{html.escape(line)}</p>' for line in left_out]
    return page.document("PDP: results", "".join(parts))


def _prose(text: str) -> str:
    from markdown_it import MarkdownIt

    # HTML in the text is shown as text.
    return f"<article>{MarkdownIt('commonmark', {'html': False}).enable('table').render(text)}</article>"


def _sheet(sheet: Sheet) -> str:
    parts = [f'<h2 id="{html.escape(sheet.name)}">{html.escape(sheet.title)}</h2>']
    parts += [f"<p>{html.escape(note)}</p>" for note in sheet.notes]
    for section in sheet.sections:
        parts.append(f"<h3>{html.escape(section.title)}</h3>")
        heads = [column.heading for column in sheet.columns]
        parts.append(page.table(heads, section.rows, words=sheet.name in _WORDS))
    if sheet.footnotes:
        notes = "".join(f"<li>{html.escape(one)}</li>" for one in sheet.footnotes)
        parts.append(
            f"<details><summary>Sources and notes [1] to [{len(sheet.footnotes)}]</summary><ol>{notes}</ol></details>"
        )
    return "".join(parts)


def _own_names(svg: str, name: str) -> str:
    mark = re.sub(r"\W", "_", name)
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{mark}-', svg)
    return re.sub(r"url\(#", f"url(#{mark}-", svg)
