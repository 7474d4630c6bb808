"""Accuracy against latency: the metric of a study's records beside the times of the cells that they are of."""

import json

import pandas as pd
import pytest
from stored_runs import make_run

from pdp.errors import Refusal
from pdp.reports.bytes_figure import together
from pdp.reports.figures import draw_all
from pdp.reports.latency_figure import points, read_latency
from pdp.reports.latency_sheet import latency_sheet
from pdp.reports.runs import read_runs
from pdp.reports.sheet import as_markdown

QUANTIZED = {"quantize": "int8", "quantization": {"weight_bits": 8}, "metric_hard": 0.9}


@pytest.fixture
def runs(tmp_path):
    kinds = {
        "dens": {"method": "dense", "pattern": "none", "target_sparsity": 0.0},
        "pdpp": {},
        "pdpq": QUANTIZED,
        "turn": QUANTIZED | {"method": "held"},
    }
    made = {}
    for number, (kind, values) in enumerate(kinds.items()):
        made[kind] = []
        for seed in range(2):
            found = {"metric": 0.9 - number / 100 - seed / 1000, "config_hash": kind * 4}
            path = make_run(tmp_path, hash8=kind * 2, seed=str(seed), **values | found)
            (path / "layers.csv").unlink(), (path / "history.jsonl").unlink()
            record = path / "record.json"
            record.write_text(json.dumps(json.loads(record.read_text()) | {"seed": seed}))
            made[kind].append(path)
    study = read_runs([path for kind in ("dens", "pdpp", "pdpq") for path in made[kind]], "both")
    return pd.concat([study, read_runs(made["turn"], "both_in_turn")], ignore_index=True)


def row(method, pattern, share, batch, milliseconds, engine="onnxruntime", model="resnet20"):
    return {
        "model": model,
        "data": "digits",
        "method": method,
        "pattern": pattern,
        "target_sparsity": share,
        "engine": engine,
        "batch": batch,
        "latency_ms": milliseconds,
        "quartiles_ms": [milliseconds * 0.9, milliseconds * 1.2],
        "speedup": None if method.startswith("held") else 4 / batch / milliseconds,
        "bytes": 1000,
    }


@pytest.fixture
def benchmarks(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    rows = [row("dense", "none", 0.0, batch, 4 / batch) for batch in (1, 8)]
    rows += [row("pdp+int8", "random", 0.8659, batch, 2 / batch) for batch in (1, 8)]  # a cut's own rounding
    rows += [row("pdp+int8", "random", 0.866, 1, 1, "OpenVINO, sparse weights")]
    rows += [row("held+int8", "random", 0.866, 1, 3), row("held+int8", "random", 0.866, 1, 5)]  # two of one name
    rows += [row("pdp+int8", "random", 0.95, 1, 9), row("pdp+int8", "random", 0.866, 1, 9, model="resnet50")]
    machine = {"threads": 1, "processor": "a processor"}
    (folder / "latency_both.json").write_text(json.dumps({"machine": machine, "results": rows}))
    return folder


def test_each_cell_s_metric_stands_at_its_own_time(runs, benchmarks):
    timed, machine = read_latency(benchmarks, "both")
    frame = points(together(runs), timed)
    assert machine["processor"] == "a processor"
    found = {(one.label, one.engine, one.batch): one for one in frame.itertuples()}
    quantized = found["pdp+int8, random 86.6 %", "onnxruntime", 1]
    assert (quantized.latency_ms, quantized.low, quantized.high) == pytest.approx((2, 1.8, 2.4))
    assert quantized.metric == pytest.approx(0.8795) and quantized.seeds == 2
    assert found["pdp+int8, random 86.6 %", "onnxruntime", 8].latency_ms == 0.25
    assert found["pdp+int8, random 86.6 %", "OpenVINO, sparse weights", 1].latency_ms == 1
    assert found["held+int8, random 86.6 %", "onnxruntime", 1].latency_ms == 4
    assert found["dense", "onnxruntime", 1].metric == pytest.approx(0.8995)
    assert len(found) == 6 and not [label for label, _, _ in found if label.startswith("pdp,")]  # not timed


def test_the_figure_has_a_panel_a_batch_and_is_left_out_without_a_file(runs, benchmarks):
    drawn, _ = draw_all(runs, benchmarks)
    (one,) = [figure for figure in drawn if figure.name.startswith("latency-")]
    assert one.name == "latency-both-resnet20-digits" and "a processor, 1 thread" in one.caption
    assert [axes.get_xlabel() for axes in one.figure.axes] == [f"ms of a sample, batch {size}" for size in (1, 8)]
    (legend,) = one.figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    engines = {"onnxruntime", "OpenVINO, sparse weights"}
    assert labels == engines | {"dense", "pdp+int8, random 86.6 %", "held+int8, random 86.6 %"}
    for folder in (None, benchmarks / "nowhere"):
        drawn, left_out = draw_all(runs, folder)
        assert not [figure for figure in drawn if figure.name.startswith("latency-")]
        assert [line for line in left_out if "scripts/benchmark_latency.py" in line]


def test_the_table_says_the_same(runs, benchmarks):
    sheet = latency_sheet(runs, benchmarks)
    first, second = sheet.sections
    assert first.title.startswith("resnet20 on digits, batch 1, study both, a processor, threads 1")
    rows = {(name, engine): rest for name, engine, *rest in first.rows}
    cell = ["2", "87.95 ± 0.64 %", "2.0000", "1.8000, 2.4000", "2.00", "1.0"]
    assert rows["pdp+int8, random 86.6 %", "onnxruntime"] == cell
    assert rows["held+int8, random 86.6 %", "onnxruntime"][4] == "" and len(first.rows) == 4 and len(second.rows) == 2
    assert len(sheet.frame) == 6 and as_markdown(sheet).count("| dense | onnxruntime |") == 2
    assert latency_sheet(runs, benchmarks / "nowhere") is None


@pytest.mark.parametrize("text", ["{", "{}", '{"machine": {}, "results": [{"model": 1}]}', "[]"])
def test_a_file_of_another_kind_is_refused(text, tmp_path):
    (tmp_path / "latency_both.json").write_text(text)
    with pytest.raises(Refusal, match="latency_both.json cannot be read .*benchmark_latency.py"):
        read_latency(tmp_path, "both")
