"""Accuracy against bytes: every run in the form that takes least, runs in turn among those they go on from."""

import json

import pandas as pd
import pytest
from record_values import record_values
from stored_runs import make_run

from pdp.reports.bytes_figure import points, together
from pdp.reports.figures import draw_all
from pdp.reports.runs import read_runs
from pdp.reports.study_table import study_table

FLOATS = {"fp32": 4000, "fp32_bitmask": 900, "fp32_bitmask_zstd": 800}
INTEGERS = FLOATS | {"int8": 1000, "int8_runs": 300, "int8_runs_zstd": 310}


@pytest.fixture
def runs(tmp_path):
    quantized = {"quantize": "int8", "quantization": {"weight_bits": 8}, "metric_hard": 0.9, "bytes_on_disk": INTEGERS}
    dense = {"method": "dense", "pattern": "none", "target_sparsity": 0.0}
    kinds = {
        "d": dense | {"bytes_on_disk": {"fp32": 4000, "fp32_bitmask": 4100}},
        "di": dense | quantized | {"bytes_on_disk": INTEGERS | {"int8_runs": 1500, "int8_runs_zstd": 990}},
        "p": {"bytes_on_disk": FLOATS},
        "pi": quantized,
        "old": {"method": "gmp"},  # from before records said it
    }
    made = []
    for number, (kind, values) in enumerate(kinds.items()):
        for seed in range(2):
            found = {"metric": 0.9 - number / 100 - seed / 1000, "config_hash": kind.ljust(16, "0")}
            path = make_run(tmp_path, hash8=kind.ljust(8, "0"), seed=str(seed), **values | found)
            (path / "layers.csv").unlink(), (path / "history.jsonl").unlink()
            record = path / "record.json"
            record.write_text(json.dumps(json.loads(record.read_text()) | {"seed": seed}))
            made.append(path)
    turn = make_run(tmp_path, "turn0000", **quantized, method="held", config_hash="turn" * 4)
    (turn / "layers.csv").unlink(), (turn / "history.jsonl").unlink()
    study, after = read_runs(made, "both"), read_runs([turn], "both_in_turn")
    return pd.concat([study, after], ignore_index=True)


def test_each_stands_at_the_least_that_it_ships_in(runs):
    frame = points(together(runs)).set_index("label")
    assert frame.bytes.to_dict() == {
        "pdp+int8, random 86.6 %": 300,
        "held+int8, random 86.6 %": 300,
        "pdp, random 86.6 %": 800,
        "dense+int8": 990,
        "dense": 4000,
    }
    assert frame.form["pdp+int8, random 86.6 %"] == "int8_runs" and frame.form["dense"] == "fp32"
    assert frame.metric["pdp, random 86.6 %"] == pytest.approx(0.8795) and frame.seeds["dense"] == 2


def test_the_figure_is_drawn_once_and_no_quantized_run_is_a_baseline(runs):
    drawn, _ = draw_all(runs)
    (one,) = [figure for figure in drawn if figure.name.startswith("bytes-")]
    assert one.name == "bytes-both-resnet20-digits" and "against bytes on the disk" in one.caption
    assert not [figure.name for figure in drawn if "-none" in figure.name]
    table = study_table(runs[runs.study == "both"])
    assert {"dense", "dense+int8", "pdp", "pdp+int8", "gmp"} == set(table.method) and (table.seeds == 2).all()


def test_records_of_before_say_the_metric_is_hard(runs):
    values = record_values()
    assert "metric_hard" not in values and runs.quantize.isin(["none", "int8"]).all()
    assert runs[runs.base_method == "gmp"].metric_hard.isna().all()
