"""The local dashboard and the sweep's table on folders of runs: finished, in progress and damaged."""

import html.parser
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys

import pandas as pd
import pytest
from record_values import record_values
from stored_runs import make_run

from pdp.errors import Refusal
from pdp.reports import plots
from pdp.reports.dashboard import _together, write_page
from pdp.reports.sweep_table import make_tables, write_tables
from pdp.runs.directory import RunDirectory
from pdp.runs.record import Record, write_record
from scripts import dashboard
from scripts.runs import main as runs_script

LAYERS = "name,type,weights,nonzero,sparsity,macs,sparse_macs,prunable\nconv1,Conv2d,10,5,0.5,1,1,True\nfc,Linear,4,4,0.0,1,1,False\n"


def cell(results, name, method, metrics, sparsity=0.8):
    """Finished runs of one cell, a seed for each metric."""
    for seed, metric in enumerate(metrics):
        path = make_run(results, name * 8, str(seed))
        values = {"method": method, "metric": metric, "seed": seed, "target_sparsity": sparsity, "sparsity": sparsity}
        record = record_values(**values, config_hash=name * 16, macs_sparse=1000 + seed)
        write_record(Record(**record), path)
        (path / "layers.csv").write_text(LAYERS)


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    cell(folder, "a", "pdp", [0.75, 0.5, 0.625])
    cell(folder, "b", "gmp", [0.25])
    make_run(folder, "cccccccc", finished=False, epochs=3)
    return folder


class Page(html.parser.HTMLParser):
    """Which tags a page holds, and what they would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.fetched = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "srcset", "data") and not (value or "").startswith("#"):
                self.fetched.append((tag, key, value))


def test_the_page_shows_every_view_and_fetches_nothing(results, tmp_path, capsys):
    target = tmp_path / "page.html"
    held = RunDirectory(make_run(results, "dddddddd", finished=False, epochs=2))
    held.hold()
    assert dashboard.main([str(results / "runs"), "--to", str(target)]) == 0
    held.release()
    assert "1 dead, 4 finished, 1 running" in capsys.readouterr().out
    text = target.read_text()
    page = Page(text)
    assert not page.fetched and "link" not in page.tags  # its one script lies inside
    assert not re.search(r"url\((?!#)|@import", text)
    assert page.tags.count("svg") == 2 + 1 + 1 + 1 + 2  # curves, two scatters, shares, two bars
    for words in ("Accuracy against sparsity", "Accuracy against MACs", "Per-layer shares", "Training cost"):
        assert words in text
    assert "dddddddd-0" in text and "2/4" in text and "3/4" in text
    assert not list(tmp_path.glob(".page*"))


def test_patterns_and_fine_tuned_runs_are_drawn_apart_and_their_cost_too(tmp_path):
    """Each figure joins the runs of one pattern and one start, with the dense ones of that start."""
    folder = tmp_path / "results"
    for name, values in {
        "a": {"pattern": "random"},
        "b": {"pattern": "channel", "target_unit": "channel"},
        "c": {"pattern": "random", "pretrained": "weights.pth (file 0123)"},
        "d": {"pattern": "none", "method": "dense", "target_sparsity": 0.0, "sparsity": 0.0},
        "e": {"pattern": "random", "data": "cifar10"},
    }.items():
        path = make_run(folder, name * 8, "0")
        write_record(Record(**record_values(**values, config_hash=name * 16)), path)
    frame = make_tables(sorted((folder / "runs").glob("*/seed*"))).runs
    groups = {title: sorted(cell[0] for cell in group.cell) for title, group in _together(frame)}
    assert groups == {
        "resnet20 on digits, random": ["a", "d"],
        "resnet20 on digits, channel": ["b", "d"],
        "resnet20 on digits, random, from weights.pth weights": ["c"],
        "resnet20 on cifar10, random": ["e"],
    }
    dashboard.main([str(folder / "runs"), "--to", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    for title in groups:
        assert text.count(f"{title}: training") == 1, title
    assert "86.6 % of channels" in text


def test_a_run_that_was_moved_aside_is_not_on_the_page(results, tmp_path):
    shown = write_page(results / "runs", tmp_path / "before.html")
    run = next((results / "runs").glob("*/seed0"))
    shutil.copytree(run, run.with_name("seed0.before-20260101-000000"))
    values = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(values | {"finished_at": "2026-02-03T04:05:06Z"}))
    assert write_page(results / "runs", tmp_path / "after.html") == shown


def test_a_page_of_nothing_and_of_no_folder(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert dashboard.main([str(tmp_path / "runs"), "--to", str(tmp_path / "page.html")]) == 0
    assert "no runs" in capsys.readouterr().out
    with pytest.raises(Refusal, match="is no folder"):
        dashboard.main([str(tmp_path / "none")])
    with pytest.raises(Refusal, match="--watch 0"):
        dashboard.main([str(tmp_path), "--watch", "0"])


def test_a_name_is_text_on_the_page_and_not_markup(results, tmp_path):
    make_run(results, "eeeeeeee", model="<b>x</b>", config_hash="e" * 16)
    dashboard.main([str(results / "runs"), "--to", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    assert "<b>" not in text and "&lt;b&gt;x&lt;/b&gt;" in text


def test_tables_are_means_over_seeds_and_left_as_they_were_by_writing(results, tmp_path):
    paths = sorted((results / "runs").glob("*/seed*"))
    tables = make_tables(reversed(paths))
    assert list(tables.runs.seed) == [0, 0, 1, 2] and list(tables.runs.method) == ["gmp", "pdp", "pdp", "pdp"]
    (row,) = tables.cells[tables.cells.method == "pdp"].to_dict("records")
    values = [0.75, 0.5, 0.625]
    assert row["seeds"] == 3 and row["metric_mean"] == statistics.mean(values)
    assert row["metric_std"] == statistics.stdev(values)
    assert (row["metric_min"], row["metric_max"]) == (0.5, 0.75)
    write_tables(tables, tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "runs.csv", dtype={"pretrained": str})
    pd.testing.assert_frame_equal(written, tables.runs, check_dtype=False)
    text = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len({line.count("|") for line in text}) == 1 and len(text) == 4
    assert "62.50 %" in text[3] and "pdp" in text[3] and "nan" not in "".join(text)


def test_runs_script_prints_and_writes_the_same_table(results, tmp_path, capsys):
    assert runs_script(["--results", str(results), "table", "--to", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "4 runs of" in told and "62.50 %" in told
    tables = make_tables((results / "runs").glob("*/seed*"))
    assert (tmp_path / "out" / "cells.csv").read_text() == tables.cells.to_csv(index=False)


def test_a_damaged_record_is_named(results, capsys):
    path = make_run(results, "ffffffff", **{"config_hash": "f" * 16})
    (path / "record.json").write_text('{"model": ')
    assert runs_script(["--results", str(results), "table"]) == 2
    assert str(path) in capsys.readouterr().err


def test_watching_outlives_a_damaged_record(results, tmp_path):
    """A record that lacks a field for a while is told, and the page is written again once it is whole."""
    (record,) = (results / "runs").glob("*bbbbbbbb*/seed0/record.json")
    whole, target = record.read_text(), tmp_path / "page.html"
    record.write_text(json.dumps({key: value for key, value in json.loads(whole).items() if key != "run_id"}))
    command = [sys.executable, "scripts/dashboard.py", str(results / "runs"), "--to", str(target), "--watch", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        try:
            assert "cannot be read" in watching.stderr.readline() and not target.exists()
            record.write_text(whole)
            assert "4 finished" in watching.stdout.readline() and "<html" in target.read_text()
        finally:
            watching.send_signal(signal.SIGINT)


def test_the_soft_gap_is_kept_where_there_is_one(results, capsys):
    path = results / "runs" / "resnet20-digits-pdp-random-0.866-aaaaaaaa" / "seed0"
    (path / "soft_gap.csv").write_text("name,cut\nconv1,0.5\n")
    assert (
        runs_script(["--results", str(results), "keep", str(path), str(path.with_name("seed1")), "--study", "s"]) == 0
    )
    kept = results / "records" / "s" / path.parent.name
    assert (kept / "seed0" / "soft_gap.csv").read_text() == "name,cut\nconv1,0.5\n"
    assert not (kept / "seed1" / "soft_gap.csv").exists() and "soft_gap.csv" not in capsys.readouterr().out


def test_an_axis_in_percent_is_never_a_hundredth_of_a_point_wide() -> None:
    # 89.9999 and 90.0001 % were once written as -0.0001 and 0.0001 with +9e1 at the edge.
    runs = pd.DataFrame(
        {"metric_name": "top1", "method": ["pdp", "gmp"], "cell": ["a", "b"], "metric": [0.9951, 0.995]}
        | {"sparsity": [0.899999, 0.900001]}
    )
    text = plots.scatter(runs, "sparsity", "sparsity, %", "two methods")
    written = [float(one) for one in re.findall(r">([−0-9.]+)</text>", text.replace("−", "-"))]
    assert min(written) >= 89 and max(written) <= 100 and 90.0 in written
    assert "+9e1" not in text
