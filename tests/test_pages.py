"""Pages name files that exist: a path in code marks is in the repository, or is a file that a run leaves."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PATH = re.compile(r"`((?:pdp|conf|scripts|tests|docs|results)/[\w./*-]+)`")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/rooms.md", "docs/api.md", "README.md"])
def test_named_files_exist(page):
    named = _PATH.findall((ROOT / page).read_text(encoding="utf-8"))
    made = ("results/runs", "results/report.html", "results/dashboard.html")
    missing = [one for one in named if not one.startswith(made) and "<" not in one and not any(ROOT.glob(one))]
    assert missing == []


def test_every_room_is_in_the_table_of_rooms():
    rooms = {path.name + "/" * path.is_dir() for path in (ROOT / "pdp").iterdir() if path.name[:2] != "__"}
    page = (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8")
    listed = {
        one
        for line in page.splitlines()
        if line.startswith("| `")
        for one in re.findall(r"`([\w./]+)`", line.split(" | ")[0])
    }
    assert listed == rooms


def test_twenty_questions_lead_to_files():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Where is it?")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and line.count("|") == 3][1:]
    assert len(rows) >= 20 and all("?" in row.split("|")[1] and _PATH.search(row.split("|")[2]) for row in rows)
