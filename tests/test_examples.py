"""examples/: the notebook executed by a kernel, the custom training loops, the commands in the own model's README."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pdp.config.command_line import main

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def test_the_notebook_runs_from_top_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without outputs
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    text = "".join(one.get("text", "") for one in outputs)
    (whole,) = tmp_path.glob("results/runs/digit_net.DigitNet-digits-pdp-channel-0.5-*/seed0/record.json")
    record = json.loads(whole.read_text())
    assert f"top1 {record['metric']:.1%} with" in text and record["metric"] > 0.5
    assert "refused: recipe.epochz" in text
    assert float(re.search(r"largest difference: (\S+)", text)[1]) < 1e-3
    smaller = int(re.search(r"(\d+) parameters, \(2, 10\)", text)[1])
    assert smaller < 0.6 * record["params"]
    assert any("image/png" in one.get("data", {}) for one in outputs)
    table = next(one["data"]["text/plain"] for one in outputs if "metric" in one.get("data", {}).get("text/plain", ""))
    assert table.count("finished") == 4


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("2:4", "50.0%"), ("4x1", "80.0%"), ("channel", "50.0%")]
)  # random: from a wheel
def test_the_loop_of_ones_own_prunes_by_each_pattern(pattern, sparsity, capsys):
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLES / "own_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(pattern) > 0.9  # of three kinds of images
    shown = capsys.readouterr().out
    assert f"at {sparsity} sparsity" in shown
    assert ("stays dense: head (its matrix, 3 x 24" if pattern == "4x1" else "stays dense: stem.0 (the stem") in shown
    gone = re.search(r"channels gone {'one.0': \(12, 24\)}; parameters ([\d,]+) -> ([\d,]+)", shown)
    assert bool(gone) == (pattern == "channel")


def test_the_lines_of_the_own_models_page_work_as_they_stand(tmp_path, monkeypatch):
    folder = tmp_path / "own model"
    shutil.copytree(EXAMPLES / "own_model", folder, ignore=shutil.ignore_patterns("results", "__pycache__"))
    (block,) = re.findall(r"```bash\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one not in ("", str(ROOT))])
    for line in block.splitlines():
        python, script, *words = shlex.split(line)
        assert (python, script) == ("python", "../../train.py")
        # With fewer samples than the page's, whose point is the model.
        assert main("train", [*words, "data.limit=64"]) == 0, line
    names = {path.parts[-3].rpartition("-")[0] for path in folder.glob("results/runs/*/seed0/record.json")}
    assert names == {
        "mypackage.models.MyNet-digits-pdp-random-0.8",
        "mypackage.models.MyNet-digits-pdp-channel-0.5",
        "mypackage.models.MyNet-digits-pdp-random-0.9",
        "mypackage.models.narrow-digits-pdp-random-0.8",
        "mypackage.models.narrow-digits-pdp-random-0.9",
    }
