"""Runs of earlier code, finished and interrupted, with their records, configurations and checkpoints, can be opened."""

import shutil
from pathlib import Path

import pytest

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import run_directory
from pdp.config.stored import from_yaml
from pdp.reports.sheet import as_markdown
from pdp.reports.tables import make_sheets
from pdp.runs.record import read_record

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests" / "old_runs"
NAME = "bert_tiny-grammar_nli-pdp-random-0.9-083626a5"
WORDS = [
    *("model=bert_tiny", "model.sizes.hidden_size=16", "model.sizes.intermediate_size=32"),
    *("model.sizes.num_hidden_layers=1", "model.sizes.num_attention_heads=2"),
    *("recipe.epochs=4", "recipe.batch_size=64", "sparsity=0.9", "method=pdp"),
]
ONE_ANSWER = 1 / 600  # of the test set's, which another processor's rounding may turn


@pytest.fixture
def runs(tmp_path):
    shutil.copytree(OLD / NAME, tmp_path / NAME)
    return tmp_path


@pytest.fixture
def call(capsys, monkeypatch):
    """What a command of these words prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def called(program, *words):
        assert main(program, list(words)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return called


def test_its_command_still_means_the_same_run():
    record = read_record(OLD / NAME / "seed0")
    assert (record.status, record.steps, record.target_sparsity) == ("finished", 436, 0.9)
    stored = from_yaml((OLD / NAME / "seed0" / "config.yaml").read_text())
    for config in (compose([*WORDS, "seed=0"]), stored):
        assert run_directory(config, record.data_fingerprint) == Path("results/runs") / NAME / "seed0"


def test_tables_take_its_record(tmp_path):
    shutil.copytree(OLD / NAME / "seed0", tmp_path / "records" / "old" / NAME / "seed0")
    sheets = {sheet.name: sheet for sheet in make_sheets(tmp_path)}
    assert "34.17" in as_markdown(sheets["language_grammar_nli"])


def test_its_command_finds_it_finished_and_its_weights_measure_as_recorded(runs, call):
    before = {path: path.stat().st_mtime_ns for path in (runs / NAME / "seed0").iterdir()}
    call("train", *WORDS, "seed=0", f"output_dir={runs}")
    assert {path: path.stat().st_mtime_ns for path in (runs / NAME / "seed0").iterdir() if path in before} == before
    record = read_record(runs / NAME / "seed0")
    said = call("evaluate", f"run={runs / NAME / 'seed0'}")
    metric = next(float(line.split()[1]) for line in said.splitlines() if line.startswith("accuracy "))
    assert metric == pytest.approx(record.metric, abs=ONE_ANSWER)
    assert said.count(f"{record.params_nonzero:,}") == 2 and said.count(f"{record.macs_sparse:,}") == 2


def test_an_interrupted_one_goes_on_from_its_checkpoint(runs, call):
    said = call("train", *WORDS, "seed=1", f"output_dir={runs}")
    assert "step 328" in said
    record = read_record(runs / NAME / "seed1")
    assert (record.status, record.steps, record.config_hash) == ("finished", 436, "083626a5dca7ed79")
    whole = read_record(runs / NAME / "seed0")
    assert record.sparsity == whole.sparsity and record.params_nonzero == whole.params_nonzero
    lines = (runs / NAME / "seed1" / "history.jsonl").read_text().splitlines()
    assert len(lines) == 4 and lines[:3] == (OLD / NAME / "seed1" / "history.jsonl").read_text().splitlines()
