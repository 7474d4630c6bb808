"""Writes the generated parts of the documentation.

These are the tables in docs/methods/*.md and docs/studies/fashion_why.md, and all of docs/configuration.md.

    python scripts/cards.py            writes what has changed, and names it
    python scripts/cards.py --check    writes nothing; exit code 2 if a page differs from what it would write

Options come from the dataclasses and their comments, schedules from conf/, results from results/records. What people
write in a card, outside its marked blocks, is kept; a method without a card gets an empty one. Commit new records or
options together with the regenerated pages: a test compares them. Exit codes: 0; 2 refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal
from pdp.scripting import Parser, guarded

ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Writes every page whose text has changed."""
    parser = Parser("cards.py", __doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    arguments = parser.parse_args(argv)

    from pdp.reports.cards import write_cards
    from pdp.reports.configuration import PAGE, configuration_page
    from pdp.reports.runs import read_kept
    from pdp.reports.why import why_page

    runs = read_kept(ROOT / "results")
    pages = write_cards(ROOT, runs) | {ROOT / PAGE: configuration_page()} | why_page(ROOT, runs)
    changed = [place for place, text in pages.items() if not place.is_file() or place.read_text("utf-8") != text]
    names = ", ".join(str(place.relative_to(ROOT)) for place in changed)
    if changed and arguments.check:
        raise Refusal(f"{names}: out of date, run python scripts/cards.py")
    for place in changed:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(pages[place], encoding="utf-8")
    print(f"{len(pages)} pages, written anew: {names or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("cards", main))
