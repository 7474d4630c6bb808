"""scripts/benchmark_inference.py: its output against counts of the models that it names; no times are judged."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NAMES = ("dense", "slim", "slim in multiples of 4")
ROOT = Path(__file__).resolve().parents[2]


def test_figures_of_dense_and_slim_in_both_layouts(tmp_path):
    out = tmp_path / "new" / "figures.json"
    command = [sys.executable, "scripts/benchmark_inference.py", "--model", "resnet20", "--size", "32", "--batch", "2"]
    done = subprocess.run(
        [*command, "--round-to", "4", "--rounds", "2", "--device", "cpu", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    rows = {(row["model"], row["engine"]): row for row in written["results"]}
    assert list(rows) == [(name, layout) for layout in ("torch", "torch, channels_last") for name in NAMES]
    dense, slim = rows["dense", "torch"], rows["slim", "torch"]
    assert dense["macs"] == 40_813_184 + 64 * 990  # the published 40.81 M of ten classes, here with a thousand
    assert slim["macs"] / dense["macs"] == pytest.approx(0.5, rel=0.01)
    rounded = rows["slim in multiples of 4", "torch"]
    assert rounded["macs"] / dense["macs"] == pytest.approx(0.5, rel=0.05) and rounded["macs"] != slim["macs"]
    assert slim["parameters"] < dense["parameters"] and dense["speedup"] == 1
    assert written["machine"]["input"] == [3, 32, 32]
