"""Tables: ours beside published numbers, what must never be compared, every format, the committed tables made again."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_report_statistics import DENSE, keep

from pdp.reports.sheet import Sheet, as_csv, as_latex, as_markdown, columns, count, latex, p_value, score
from pdp.reports.tables import make_sheets, outlived, write_sheets
from scripts import tables

ROOT = Path(__file__).resolve().parents[2]
HEAD = "method,label,model,data,pattern,sparsity,macs,mac_convention,metric_name,value,epochs,source,verified\n"
ROWS = (
    "gmp,GMP,resnet50,imagenet,random,0.9,409000000,mac,top1,0.7391,102,a README,yes\n"
    "gmp,GMP extended,resnet50,imagenet,random,0.902,,,top1,0.7516,102,a README,yes\n"
    "rigl,RigL,resnet50,imagenet,random,0.9,1968000000,flop,top1,0.7307,,another README,third party\n"
    "gmp,GMP,resnet50,imagenet,random,0.8,,,top1,0.7558,102,a README,no\n"
    "dense,dense,resnet50,imagenet,none,0,4089284608,mac+pool,top1,0.7701,100,a README,yes\n"
    "srste,SR-STE,resnet50,imagenet,2:4,0.5,,,top1,0.77,120,a README,yes\n"
    "pofa,POFA,bert_base,glue-mnli,random,0.9,,,accuracy,0.8145,3,a README,yes\n"
)
IMAGENET = {"model": "resnet50", "data": "imagenet", "target_sparsity": 0.9, "sparsity": 0.9}


@pytest.fixture
def results(tmp_path):
    for seed, metric in enumerate((0.73, 0.75, 0.74)):
        keep(tmp_path, "one", "1", seed, method="gmp", metric=metric, **IMAGENET, validation="test")
        keep(tmp_path, "one", "2", seed, **IMAGENET | DENSE | {"metric": 0.76, "sparsity": 0.0})
    keep(tmp_path, "digits", "3", 0, metric=0.95)
    keep(tmp_path, "digits", "4", 0, method="gmp", metric=0.25)
    keep(tmp_path, "one_tuning", "5", 0, method="gmp", metric=0.111, **IMAGENET)
    (tmp_path / "published.csv").write_text(HEAD + ROWS)
    return tmp_path


def sheet_named(sheets, name):
    (sheet,) = [one for one in sheets if one.name == name]
    return sheet


def test_ours_stand_beside_every_published_number_of_their_cell(results):
    frame = sheet_named(make_sheets(results), "random_imagenet").frame
    gmp = frame[(frame.method == "gmp") & (frame.seeds == 3)]
    assert sorted(gmp.published_value) == [0.7391, 0.7516]  # both sources, none chosen
    assert gmp.metric.tolist() == pytest.approx([0.74] * 2)
    assert sorted(gmp.published_difference) == pytest.approx([0.74 - 0.7516, 0.74 - 0.7391])
    assert gmp.difference.tolist() == pytest.approx([-0.02] * 2)
    alone = frame[frame.seeds == 0].set_index(["method", "target_sparsity"])
    assert alone.published_value["gmp", 0.8] == 0.7558 and alone.published_macs["rigl", 0.9] == 984_000_000
    dense = frame[frame.method == "dense"].iloc[0]
    assert dense.published_value == 0.7701 and dense.published_macs == 4_089_184_256 and pd.isna(dense.difference)


def test_soft_movement_and_shares_of_macs_find_their_own_published_rows(tmp_path):
    bert = {"model": "bert_base", "data": "glue-mnli", "task": "text_classification", "metric_name": "accuracy"}
    bert |= {"method": "movement", "target_sparsity": 0.9, "metric": 0.81, "metrics": {"accuracy": 0.81}}
    keep(tmp_path, "l", "1", 0, method_options={"variant": "soft"}, **bert)
    keep(tmp_path, "l", "2", 0, method_options={"variant": "hard"}, **bert | {"metric": 0.79})
    channel = {"model": "resnet50", "data": "imagenet", "method": "chex", "pattern": "channel", "macs": 4_089_184_256}
    keep(tmp_path, "c", "3", 0, target_unit="mac", target_sparsity=0.5, metric=0.77, **channel)
    keep(tmp_path, "c", "4", 0, target_unit="channel", target_sparsity=0.5, metric=0.75, **channel)
    (tmp_path / "published.csv").write_text(
        HEAD + "movement,MVP,bert_base,glue-mnli,random,0.9,,,accuracy,0.801,,a README,yes\n"
        "movement_soft,SMVP,bert_base,glue-mnli,random,0.9,,,accuracy,0.812,,a README,yes\n"
        "chex,CHEX,resnet50,imagenet,channel,,2000000000,mac,top1,0.774,250,a README,yes\n"
        "chex,CHEX smaller,resnet50,imagenet,channel,,1000000000,mac,top1,0.76,250,a README,yes\n"
    )
    sheets = make_sheets(tmp_path)
    language = sheet_named(sheets, "language_glue-mnli").frame
    assert dict(zip(language.metric, language.published_value, strict=True)) == {0.81: 0.812, 0.79: 0.801}
    channels = sheet_named(sheets, "channel_imagenet")
    beside = channels.frame[channels.frame.seeds > 0].set_index("metric").published_value
    assert beside[0.77] == 0.774 and pd.isna(beside[0.75])
    assert "| 50 % of MACs |" in as_markdown(channels) and "| 50 % |" in as_markdown(channels)


def test_what_attention_multiplies_is_said_beside_the_macs_of_layers(tmp_path):
    bert = {"model": "bert_base", "data": "glue-mnli", "task": "text_classification", "metric_name": "accuracy"}
    keep(tmp_path, "l", "1", 0, method="pdp", target_sparsity=0.9, macs_sparse=1_087e6, macs_attention=302e6, **bert)
    keep(tmp_path, "v", "2", 0, method="pdp", target_sparsity=0.9)
    sheets = make_sheets(tmp_path)
    text = as_markdown(sheet_named(sheets, "language_glue-mnli"))
    (mark,) = re.findall(r"- (\[\d\]) Products of attention.*: 302.00 M more", text)
    assert f"| 1,087.00 M {mark} |" in text
    assert "attention" not in as_markdown(sheet_named(sheets, "random_digits"))


def test_a_data_set_has_its_own_table_and_a_pattern_too(results):
    sheets = make_sheets(results)
    names = [sheet.name for sheet in sheets]
    assert {"random_imagenet", "random_digits", "nm_imagenet", "language_glue-mnli"} <= set(names)
    for sheet in sheets:
        if "data" in sheet.frame and "_" in sheet.name and sheet.name != "training_cost":
            assert set(sheet.frame.data) == {sheet.name.partition("_")[2]}
    text = as_markdown(sheet_named(sheets, "random_imagenet"))
    assert "digits" not in text and "SR-STE" not in text and "11.10" not in text
    assert set(sheet_named(sheets, "nm_imagenet").frame.pattern) == {"2:4", "none"}
    assert "No published number" in as_markdown(sheet_named(sheets, "random_digits"))


def test_sources_marks_and_conversions_are_said_in_footnotes(results):
    text = as_markdown(sheet_named(make_sheets(results), "random_imagenet"))
    assert re.search(r"- \[\d\] another README; verified: third party; MACs converted from 1,968.00 M .*flop", text)
    assert "a README; verified: no" in text and "MACs converted from 4,089.28 M in the convention mac+pool" in text
    rigl = next(line for line in text.splitlines() if line.startswith("| RigL"))
    mark = re.search(r"73.07 % (\[\d\])", rigl)[1]
    assert f"- {mark} another README" in text and "984.00 M" in rigl
    ours = next(line for line in text.splitlines() if line.startswith("| gmp"))
    assert "74.00 ± 2.48 %" in ours and "labelled set is the test here" in text


def test_configurations_of_one_method_are_told_apart_by_what_differs(tmp_path):
    keep(tmp_path, "s", "1", 0, method_options={"temperature": 1e-4})
    keep(tmp_path, "s", "2", 0, method_options={"temperature": 1e-3})
    labels = set(sheet_named(make_sheets(tmp_path), "random_digits").frame.label)
    assert labels == {"pdp (temperature=0.0001)", "pdp (temperature=0.001)"}


def test_options_that_are_not_the_methods_own_are_said_in_a_footnote(tmp_path):
    own = {"temperature": 1e-4, "temperature_mode": "auto", "kappa": None, "refresh": 1, "detach_cut": True}
    keep(tmp_path, "a", "1", 0, method_options=own)
    keep(tmp_path, "b", "2", 0, method_options=own | {"refresh": 5, "temperature_mode": "relative"})
    sheet = sheet_named(make_sheets(tmp_path), "random_digits")
    rows = {row[1]: row[0] for section in sheet.sections for row in section.rows}
    assert rows == {"a": "pdp", "b": "pdp [1]"}
    assert sheet.footnotes == ["Options other than the method's own: refresh=5, temperature_mode=relative."]


def test_what_most_settings_share_goes_without_saying_and_the_bare_one_is_paired_with_each(tmp_path):
    usual = {"temperature": 1e-4, "refresh": 1}
    for cell, (options, schedule) in enumerate(
        [
            (usual, {"name": "linear", "start": 2, "warmup": "0.16"}),
            (usual | {"temperature": 1e-3}, {"name": "linear", "start": 2, "warmup": "0.16"}),
            (usual, {"name": "cubic", "start": 2, "warmup": "0.16"}),
            (usual, {"name": "linear", "start": 5, "warmup": "0.4"}),
            (usual | {"refresh": 10}, {"name": "linear", "start": 2, "warmup": "0.16"}),
        ]
    ):
        for seed in range(3):
            values = {"method_options": options, "schedule": schedule, "metric": 0.9 + 0.01 * cell + 0.001 * seed}
            keep(tmp_path, "s", str(cell), seed, **values)
    sheets = make_sheets(tmp_path)
    labels = set(sheet_named(sheets, "random_digits").frame.label)
    others = ["pdp (temperature=0.001)", "pdp (schedule=cubic)", "pdp (warmup=0.4)", "pdp (refresh=10)"]
    assert labels == {"pdp", *others}
    frame = sheet_named(sheets, "paired_digits").frame.set_index("method")
    assert set(frame.pdp) == {"pdp"} and set(frame.index) == set(others)
    assert [frame.difference[label] for label in others] == pytest.approx([-0.01, -0.02, -0.03, -0.04])


def test_pdp_is_paired_with_each_method_and_holm_counts_the_family(tmp_path):
    for seed in range(4):
        keep(tmp_path, "s", "1", seed, metric=0.9 + 0.01 * seed)
        keep(tmp_path, "s", "2", seed, method="gmp", metric=0.85 + 0.012 * seed)
        keep(tmp_path, "s", "3", seed, method="str", metric=0.9 + 0.01 * seed * (-1) ** seed)
    frame = sheet_named(make_sheets(tmp_path), "paired_digits").frame.set_index("method")
    assert frame.pairs.tolist() == [4, 4] and frame.difference["gmp"] == pytest.approx(0.047)
    assert frame.p_t_holm["gmp"] == pytest.approx(2 * frame.p_t["gmp"]) and frame.p_wilcoxon["gmp"] == 0.125
    assert set(frame.family) == {2}


def test_every_format_holds_the_same_rows(results, tmp_path):
    sheets = make_sheets(results)
    written = write_sheets(sheets, tmp_path / "out")
    assert len(written) == 3 * len(sheets) and not list((tmp_path / "out").glob(".*"))
    for sheet in sheets:
        rows = sum(len(section.rows) for section in sheet.sections)
        text, tex = as_markdown(sheet), as_latex(sheet)
        assert all(len(row) == len(sheet.columns) for section in sheet.sections for row in section.rows)
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == rows + 2 * len(sheet.sections)
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
        assert tex.count("\\\\\n") == rows + len(sheet.sections)
        assert tex.count("\\toprule") == tex.count("\\bottomrule") == tex.count("\\end{table}") == len(sheet.sections)
        assert not re.search(r"(?<!\\)[_#&](?!.*(label|\\\\$))", re.sub(r"^%.*|\\label.*|.*\\\\$", "", tex, flags=re.M))
        assert "nan" not in text.lower().replace("granet", "") and "nan" not in as_csv(sheet).lower()
        assert len(list(csv.reader(io.StringIO(as_csv(sheet))))) == len(sheet.frame) + 1
    assert outlived(tmp_path / "out", written[3:]) == sorted(written[:3])


def test_text_of_others_is_text():
    assert latex("50 % of a_b & c ± 1 {x} -0.5 a-1") == r"50 \% of a\_b \& c $\pm$ 1 \{x\} $-$0.5 a-1"
    sheet = Sheet("x", "X", columns(["a"], []))
    assert sheet.mark("one") == sheet.mark("one") == "[1]" and sheet.mark("two") == "[2]"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (score("top1", 0.93, 0.012), "93.00 ± 1.20 %"),
        (score("top1", -0.0128, 0.0093, sign=True), "-1.28 ± 0.93"),
        (score("top1", -0.000001, sign=True), "0.00"),
        (score("perplexity", 23.4567, 0.5), "23.457 ± 0.500"),
        (score("top1", float("nan")), ""),
        (count(4089184256), "4,089.18 M"),
        (count(99), "99"),
        (p_value(0.0004), "< 0.001"),
        (p_value(0.0625), "0.062"),
    ],
)
def test_numbers_as_people_read_them(made, text):
    assert made == text


def test_nothing_to_make_tables_from_is_refused_or_said(tmp_path, capsys):
    with pytest.raises(Exception, match="holds no records/"):
        tables.main(["--results", str(tmp_path)])
    (tmp_path / "records").mkdir()
    assert tables.main(["--results", str(tmp_path)]) == 0
    assert "0 files of 0 tables" in capsys.readouterr().out


def test_the_committed_tables_are_those_of_the_committed_records(tmp_path):
    made = write_sheets(make_sheets(ROOT / "results"), tmp_path)
    committed = sorted(path.name for path in (ROOT / "results" / "tables").iterdir())
    words = "run python scripts/tables.py and commit what it made with the records"
    assert committed == sorted(path.name for path in made), words
    for path in made:
        assert path.read_bytes() == (ROOT / "results" / "tables" / path.name).read_bytes(), f"{path.name}: {words}"


def test_reports_need_no_torch():
    code = (
        "import sys, pkgutil, importlib\n"
        "for name in ('torch', 'torchvision', 'transformers', 'accelerate', 'timm'):\n    sys.modules[name] = None\n"
        "import pdp.reports\n"
        "names = [one.name for one in pkgutil.iter_modules(pdp.reports.__path__)]\n"
        "for name in names:\n    importlib.import_module('pdp.reports.' + name)\n"
        "import pdp.runs.published\n"
        "from scripts import tables, figures, report\n"
        "print(*sorted(names))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"tables", "figures", "report", "statistics", "dashboard"} <= set(done.stdout.split())
