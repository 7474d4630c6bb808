"""Published numbers: the file's content, conversions of MACs against known counts, and refusals."""

import csv
import math
from pathlib import Path

import pytest

from pdp.errors import Refusal
from pdp.runs.published import COLUMNS, load_published

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "results" / "published.csv"
GOOD = {
    "method": "rigl", "label": "RigL", "model": "resnet50", "data": "imagenet", "pattern": "random", "sparsity": "0.9",
    "macs": "2e9", "mac_convention": "flop", "metric_name": "top1", "value": "0.73", "epochs": "100",
    "source": "a README", "verified": "yes",
}  # fmt: skip


def write(path: Path, *rows: dict) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows([GOOD, *(GOOD | row for row in rows)])
    return path


def test_every_row_of_the_committed_file_loads_with_a_source():
    frame = load_published(FILE)
    with FILE.open(newline="", encoding="utf-8") as file:
        assert len(frame) == sum(1 for _ in csv.DictReader(file)) > 150
    assert frame.source.str.len().min() > 5
    assert frame.sparsity.max() < 1 and frame.value[frame.metric_name != "perplexity"].between(0, 1).all()
    assert not frame.drop(columns=["macs", "macs_published", "source"]).duplicated().any()


def test_the_abstracts_numbers_are_in_the_committed_file():
    paper = load_published(FILE).query("method == 'pdp' and verified == 'yes'")
    assert paper[["model", "data", "sparsity", "value"]].values.tolist() == [
        ["mobilenet_v1", "imagenet", 0.866, 0.682],
        ["bert_base", "glue-mnli", 0.9, 0.831],
    ]


def test_flops_are_halved_and_strs_pool_is_taken_off():
    # Dense ResNet-50 has 4,089,184,256 multiply-adds in its convolutions and its classifier; STR counts 2048 x 7 x 7 more.
    frame = load_published(FILE)
    dense = frame[(frame.method == "dense") & (frame.model == "resnet50")]
    of_str = dense[dense.mac_convention == "mac+pool"]
    assert of_str.macs.tolist() == [4_089_184_256] and of_str.macs_published.tolist() == [4_089_184_256 + 2048 * 7 * 7]
    of_rigl = dense[dense.mac_convention == "flop"]
    assert of_rigl.macs.tolist() == [4.1e9] and of_rigl.macs_published.tolist() == [8.2e9]
    assert (frame.macs[frame.mac_convention == "mac"] == frame.macs_published[frame.mac_convention == "mac"]).all()


def test_a_budget_of_str_counted_layer_by_layer_has_the_multiply_adds_of_its_row():
    """STR's 90.23 % ResNet-50: dense MACs x density, summed over its published budget, is the row without the pool."""
    with (ROOT / "tests/golden/str_budget_resnet50_90.csv").open(newline="", encoding="utf-8") as file:
        layers = list(csv.DictReader(file))
    counted = sum(float(row["macs"]) * (1 - float(row["sparsity_pct"]) / 100) for row in layers)
    frame = load_published(FILE)
    row = frame[(frame.method == "str") & (frame.sparsity == 0.9023)].iloc[0]
    # Percentages are given to 0.01 and the row to a tenth of a million.
    assert counted == pytest.approx(row.macs, abs=0.00005 * 4_089_184_256 + 0.05e6)


def test_flops_and_pool_of_rows_made_here(tmp_path):
    path = write(tmp_path / "p.csv", {"method": "acdc", "macs": "1000001"}, {"macs": "", "mac_convention": ""},
                 {"macs": "200352", "mac_convention": "mac+pool"}, {"macs": "200352", "mac_convention": "mac"})  # fmt: skip
    frame = load_published(path)
    assert frame.macs.tolist()[:2] == [1e9, 500000.5] and math.isnan(frame.macs[2])
    assert frame.macs.tolist()[3:] == [100_000, 200_352]
    assert list(frame.columns) == [*COLUMNS, "macs_published"]


def test_perplexity_is_raw_and_unknown_numbers_are_nan(tmp_path):
    path = write(tmp_path / "p.csv", {"metric_name": "perplexity", "value": "29.4", "sparsity": "", "epochs": ""})
    row = load_published(path).iloc[1]
    assert row.value == 29.4 and math.isnan(row.sparsity) and math.isnan(row.epochs)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("source", "", "must not be empty"),
        ("source", "  ", "must not be empty"),
        ("method", "", "must not be empty"),
        ("value", "", "must not be empty"),
        ("value", "73.1", "did you mean 0.731"),
        ("value", "nan", "fraction"),
        ("value", "best", "fraction"),
        ("sparsity", "90", "did you mean 0.9"),
        ("sparsity", "1", "below 1"),
        ("verified", "maybe", "third party"),
        ("verified", "", "third party"),
        ("mac_convention", "flops", "mac, mac\\+pool, flop"),
        ("mac_convention", "", "mac, mac\\+pool, flop"),
        ("macs", "409", "units of one"),
        ("pattern", "nm", "2:4"),
        ("epochs", "1.5", "whole number"),
    ],
)
def test_a_wrong_cell_is_refused_with_its_row_and_column(tmp_path, column, value, words):
    path = write(tmp_path / "p.csv", {}, {column: value})
    with pytest.raises(Refusal, match=rf"row 4, column {column}: .*{words}"):
        load_published(path)


def test_macs_and_their_convention_belong_together(tmp_path):
    with pytest.raises(Refusal, match="row 3, column mac_convention"):
        load_published(write(tmp_path / "p.csv", {"macs": ""}))
    with pytest.raises(Refusal, match="row 3, column mac_convention: 'mac\\+pool'; the pool of resnet50"):
        load_published(write(tmp_path / "p.csv", {"model": "mobilenet_v1", "mac_convention": "mac+pool"}))


def test_other_columns_and_no_file_are_refused(tmp_path):
    with pytest.raises(Refusal, match="cannot be read"):
        load_published(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("method,value\npdp,0.5\n")
    with pytest.raises(Refusal, match="its first line must be method,label"):
        load_published(tmp_path / "other.csv")
    path = write(tmp_path / "short.csv")
    path.write_text(path.read_text() + "pdp,PDP\n")
    with pytest.raises(Refusal, match="row 3 has not 13 cells"):
        load_published(path)
