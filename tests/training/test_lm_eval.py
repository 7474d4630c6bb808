"""lm-eval's tasks on the hard model: refused in one line where it is not installed, its numbers where it is."""

import importlib.util
import json
import math

import pytest

from pdp.config.command_line import main

pytestmark = [pytest.mark.language, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("the cat sat on the mat\n" * 30, encoding="utf-8")
    return tmp_path


MODEL = ["model=gpt2_tiny", "data=text", "data.root=.", "data.context=32", "data.vocabulary=300"]


def test_absent_misnamed_and_other_models(folder, capsys, monkeypatch):
    cases = [(["lm_eval=[]"], "names no task")]
    if importlib.util.find_spec("lm_eval") is None:
        cases.append((["lm_eval=piqa"], "lm-eval is not installed: pip install lm-eval"))
    else:
        cases.append((["lm_eval=there.yaml"], "is no file"))
    for words, told in cases:
        assert main("evaluate", [*MODEL, *words]) == 2
        said = capsys.readouterr().err.strip()
        assert told in said and "\n" not in said


def test_a_task_of_ones_own_is_scored_on_the_model(folder, capsys):
    pytest.importorskip("lm_eval")
    rows = [{"text": "the cat", "choices": [" sat", " mat"], "gold": number % 2} for number in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_target: gold\ndoc_to_choice: choices\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    assert main("evaluate", [*MODEL, "lm_eval=own.yaml"]) == 0
    said = capsys.readouterr().out
    line = next(one for one in said.splitlines() if " own " in one and " acc " in one)
    # The model's choice is the same for all rows, half of which it suits.
    assert math.isclose(float(line.split("│")[3]), 0.5)
