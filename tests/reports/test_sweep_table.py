"""The table of a sweep on terminals of any width."""

import math
import re

import pandas as pd
import pytest

from pdp.reports.study_table import markdown
from pdp.reports.sweep_table import PER_CELL, Tables, print_table


def cell(**values):
    row = {"model": "resnet20", "pretrained": "false", "data": "digits", "method": "pdp", "pattern": "random"}
    row |= {"target_unit": "weight", "target_sparsity": 0.8, "allocation": "global", "epochs": 1, "cell": "abcd1234"}
    row |= {"metric_name": "top1", "seeds": 3}
    row |= {f"{name}_{kind}": 0.5 for name in PER_CELL for kind in ("mean", "std", "min", "max")}
    return row | values


@pytest.mark.parametrize("width", [28, 40, 80])
def test_what_is_shown_is_whole_on_a_narrow_terminal(width, monkeypatch, capsys):
    for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    rows = pd.DataFrame([cell(), cell(method="gmp", metric_std=math.nan), cell(data=None, method="str")])
    print_table(Tables(rows, rows), "runs")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert shown.count("50.00 %") >= 3 and all(name in shown for name in ("pdp", "gmp", "str"))
    assert "1 epoch" in " ".join(shown.split()) and "1 epochs" not in shown
    assert all(len(line) <= width for line in shown.splitlines() if line[:1] in "┏┃└│")


def test_what_was_not_measured_is_an_empty_cell():
    row = {"pattern": "random", "target_sparsity": 0.8, "method": "pdp", "method_revision": 1, "metric_name": "top1"}
    row |= {"metric": 0.5, "metric_soft": 0.5, "sparsity": 0.8, "macs_sparse": 10**6, "extra_parameters": 0}
    frame = pd.DataFrame([{"target": 0.8, "soft": 0.5, "interval": math.nan, "seeds": 1} | row])
    frame = frame.assign(step_ratio=math.nan, mask_ms=math.nan, extra_memory_mb=math.nan)
    assert markdown(frame).splitlines()[-1].endswith("| 1.00 M |  |  |  | 0 |")
