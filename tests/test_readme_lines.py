"""Lines of README and docs marked `<!-- typed: NAME -->` are run as written, in a folder that NAME's maker fills.

Blocks of one name share a folder and are run in order; `<run>` stands for the one run that the folder then has.
"""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- typed: (\w+) -->\n+```bash\n(.*?)```", re.DOTALL)


def make_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, level in (("Bäume und Sträucher", 60), ("katze", 190)):
        (folder / "my photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(level - 50, level + 50, (40 + number, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "my photos" / name / f"Bild {number} ü.jpg")


def make_table(folder: Path) -> None:
    words = {"1": "dull", "3": "so so", "5": "wunderschön"}
    rows = [f'"{word}, film {number}",{stars}' for number in range(12) for stars, word in words.items()]
    (folder / "mine.csv").write_text("review,stars\n" + "\n".join(rows) + "\n", encoding="utf-8")


def make_own_model(folder: Path) -> None:
    make_photos(folder)
    shutil.copytree(ROOT / "examples" / "own_model" / "mypackage", folder / "mypackage")


MAKERS = {"photos": make_photos, "table": make_table, "own_model": make_own_model, "from_run": lambda folder: None}


def typed_lines() -> dict[str, list[str]]:
    """The marked lines of README and of all pages, by name; comments at their ends taken off."""
    found: dict[str, list[str]] = {}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for name, block in BLOCK.findall(page.read_text(encoding="utf-8")):
            found.setdefault(name, []).extend(line for line in block.splitlines() if line.strip())
    return found


def type_line(line: str, monkeypatch) -> int:
    """What a shell does with `python <script> <words>`, in this process; the exit code."""
    if "<run>" in line:
        (run,) = Path("results/runs").glob("*/seed0")
        line = line.replace("<run>", run.parent.name)
    python, script, *words = shlex.split(line, comments=True)
    assert python == "python" and (ROOT / script).is_file(), line
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return ended.value.code or 0


LONG = ("photos", "from_run")


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] if one in LONG else []) for one in MAKERS])
def test_marked_lines_work_as_they_stand(tmp_path, monkeypatch, capfd, name):
    lines = typed_lines()
    assert lines.keys() == MAKERS.keys()
    MAKERS[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in lines[name]:
        assert type_line(line, monkeypatch) == 0, (line, capfd.readouterr().err)
    assert list(Path("results/runs").glob("*/seed0/record.json"))
