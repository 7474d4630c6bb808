"""Method cards and the page of all keys agree with their sources and cover every option and method."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from pdp.config.meanings import meanings
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS
from pdp.reports.blocks import fill, mark
from pdp.reports.cards import write_cards
from pdp.reports.configuration import PAGE, configuration_page
from pdp.reports.runs import read_kept
from pdp.reports.why import WHY, why_page

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ["When to use it", "Options", "Schedule and budget", "Where it differs from its authors' code",
            "What our records show", "Citation"]  # fmt: skip


def test_the_pages_are_what_scripts_cards_writes():
    runs = read_kept(ROOT / "results")
    pages = write_cards(ROOT, runs) | {ROOT / PAGE: configuration_page()} | why_page(ROOT, runs)
    assert ROOT / WHY in pages
    assert len(pages) == len(OPTIONS) + 2
    for place, text in pages.items():
        assert place.read_text(encoding="utf-8") == text, f"{place.name} is out of date: python scripts/cards.py"


@pytest.mark.parametrize("method", OPTIONS)
def test_every_option_and_every_card_says_what_it_must(method):
    for one in meanings(OPTIONS[method]):
        assert one.name == "name" or (one.text and one.whose), f"{method}.{one.name} has no meaning, or nobody's value"
    card = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == SECTIONS
    prose = re.sub(r"<!-- generated.*?<!-- end -->", "", card, flags=re.DOTALL)
    for section in SECTIONS:
        written = prose.split(f"## {section}\n")[1].split("\n## ")[0].strip()
        assert written or section in ("Options", "Schedule and budget", "What our records show")


def test_every_key_has_a_meaning():
    rows = [line.split(" | ") for line in configuration_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row[0] for row in rows if len(row) < 4 or not row[-1].strip(" |")] == []


@dataclass
class Parent:
    """An options class."""

    first: float = 1e-4  # what it is; in two parts [theirs]
    # above the field,
    # on two lines [ours]
    second: str = "# no comment"
    third: int | None = None
    fourth: bool = True  # no owner


@dataclass
class Child(Parent):
    """Another default, the same meaning."""

    first: float = 0.5
    fifth: list[str] = None  # a # b


def test_meanings_are_the_comments():
    found = {one.name: one for one in meanings(Child)}
    read = {name: (one.default, one.text, one.whose) for name, one in found.items()}
    assert read == {
        "first": ("0.5", "what it is; in two parts", "theirs"),
        "second": ("# no comment", "above the field, on two lines", "ours"),
        "third": ("null", "", ""),
        "fourth": ("true", "no owner", ""),
        "fifth": ("null", "a # b", ""),
    }
    assert found["third"].kind == "int | None"


def test_blocks_are_filled_and_the_rest_is_left_as_it_is():
    page = f"by hand\n\n{mark('one')}\nmore\n{mark('two')}\nend"
    filled = fill(page, {"one": "1\n", "two": "2 \\1\n"}, "here")
    assert filled.startswith("by hand\n") and "\nmore\n" in filled and "2 \\1" in filled
    assert fill(filled, {"one": "1\n", "two": "2 \\1\n"}, "here") == filled
    for names in ({"one": ""}, {"one": "", "three": ""}):
        with pytest.raises(Refusal, match="here: its marked blocks are one, two"):
            fill(page, names, "here")
