"""GLUE's original files are read correctly, and its metrics agree with scikit-learn and scipy."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from texts import ROWS, opened, text_config, write_glue

from pdp.config.check_values import GLUE_TASKS
from pdp.errors import Refusal
from pdp.tasks import build_task
from pdp.tasks.glue import GLUE, read_glue, read_tsv_folder
from pdp.tasks.glue_metrics import measure, names_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_glue(tmp_path_factory.mktemp("glue"))


def test_mnli_labels_by_their_names_in_the_original_files(root):
    train, (matched, mismatched) = read_glue("mnli", str(root))
    assert GLUE["mnli"].labels == ("entailment", "neutral", "contradiction")  # the order of the hub's numbers too
    for part in (train, matched, mismatched):
        assert part.labels.tolist() == [0, 2, 1] and part.left_out == 1  # the row without a gold label
        assert part.first[0] == "A man sleeps." and part.second[0] == 'He "rests'  # a quote is a letter


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_task_reads_its_original_layout(root, name):
    train, measured = read_glue(name, str(root))
    for part in (train, *measured):
        assert len(part) == len(part.first) >= 2 and set(part.labels) > {0} or name == "stsb"
        assert (part.second is None) == (name in ("cola", "sst2"))
    again, _ = read_glue(name, str(root / GLUE[name].folder))  # the task's own folder does too
    assert again.first == train.first


def test_columns_headers_and_broken_lines(root):
    cola = read_glue("cola", str(root))[0]
    assert len(cola) == 8 and cola.first[1] == "Sailors the rode." and cola.labels.tolist() == [1, 0] * 4
    mrpc = read_glue("mrpc", str(root))[0]
    assert mrpc.labels[0] == 1 and mrpc.first[0] == 'He said "so.' and mrpc.second[0] == "He said so."
    qqp = read_glue("qqp", str(root))[0]
    assert len(qqp) == 2 and qqp.left_out == 1 and qqp.second[1] == "Who is it?"
    stsb = read_glue("stsb", str(root))[0]
    assert stsb.labels.dtype == np.float64 and stsb.labels.tolist() == [k / 2 for k in range(10)]
    assert read_glue("rte", str(root))[0].labels.tolist() == [1, 0] * 4
    assert read_glue("wnli", str(root))[0].labels.tolist() == [1, 0] * 4


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_other_forms_of_the_same_rows(root, tmp_path, kind):
    rows = [{"premise": f"A {k}.", "hypothesis": f"B {k}.", "label": [1, 0, 2, -1][k % 4], "idx": k} for k in range(8)]
    for name in ("train", "validation_matched", "validation_mismatched"):
        if kind == "jsonl":
            text = "\n".join(json.dumps(row) for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        else:
            pd.DataFrame(rows).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    train, measured = read_glue("mnli", str(tmp_path))
    for part in (train, *measured):
        assert part.labels.tolist() == [1, 0, 2, 1, 0, 2] and part.left_out == 2
        assert part.first[3] == "A 4." and part.second[3] == "B 4."


def test_absent_files_are_refused_by_name(root, tmp_path):
    (tmp_path / "MNLI").mkdir()
    contents = {
        "empty": b"\n",
        "scores": b"sentence1\tsentence2\tscore\nA.\tB.\t-1\nC.\tD.\tnan\n",
        "bytes": b"\xff\xfe\x00",
    }
    for folder, content in contents.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dev.tsv").write_bytes(content)
    for name, place, words in (
        ("mnli", tmp_path, "dev_matched data.root"),
        ("mnli", tmp_path / "none", "does not exist data.root"),
        ("rte", root / "CoLA", "has no column data.root"),
        ("sst2", tmp_path / "empty", "dev.tsv is empty data.root"),
        ("cola", tmp_path / "empty", "dev.tsv is empty data.root"),
        ("stsb", tmp_path / "scores", "no row with a score data.root"),
        ("rte", tmp_path / "bytes", "dev.tsv cannot be read data.root"),
    ):
        with pytest.raises(Refusal) as caught:
            read_glue(name, str(place))
        assert all(word in str(caught.value) for word in words.split()) and "\n" not in str(caught.value)


def test_three_way_tsv(tmp_path):
    header = "sentence1\tsentence2\tgold_label\n"
    rows = "A.\tB.\tneutral\nC.\tD.\tentailment\nE.\tF.\tcontradiction\nG.\tH.\t-\n"
    (tmp_path / "train.tsv").write_text(header + rows * 4)
    (tmp_path / "dev.tsv").write_text(header + rows)
    train, dev, test = read_tsv_folder(str(tmp_path))
    assert dev is None and train.labels.tolist() == [1, 0, 2] * 4 and test.labels.tolist() == [1, 0, 2]
    (tmp_path / "test.tsv").write_text(header + rows)
    assert [len(part) for part in read_tsv_folder(str(tmp_path))] == [12, 3, 3]
    task = opened("data=nli_tsv", f"data.root={tmp_path}", "data.name=mine")
    assert task.sizes() == {"train": 12, "validation": 3, "test": 3} and not task.test_is_validation


def test_metrics_of_each_task():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    scores, guesses = rng.random(200) * 5, rng.random(200)
    assert names_of("mnli") == names_of(None) == ("accuracy",) and names_of("qqp")[0] == "accuracy"
    assert measure("accuracy", labels, predictions) == sklearn_metrics.accuracy_score(labels, predictions)
    # F1 and Matthews from their formulas, by the four counts.
    tp, fp = ((labels == 1) & (predictions == 1)).sum(), ((labels == 0) & (predictions == 1)).sum()
    fn, tn = ((labels == 1) & (predictions == 0)).sum(), ((labels == 0) & (predictions == 0)).sum()
    assert measure("f1", labels, predictions) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    bottom = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert measure("matthews_correlation", labels, predictions) == pytest.approx((tp * tn - fp * fn) / bottom)
    assert measure("pearson", scores, guesses) == pytest.approx(np.corrcoef(scores, guesses)[0, 1])
    ranks = [stats.rankdata(one) for one in (scores, guesses)]
    assert measure("spearman", scores, guesses) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert measure("pearson", scores, np.ones(200)) == 0.0


def test_matched_and_mismatched_are_reported_apart(root):
    task = opened("data=glue", "data.task=mnli", f"data.root={root}")
    assert task.metric_name == "accuracy" and task.sizes()["test"] == 6 and task.test_is_validation
    observations = {
        "index": np.arange(6),
        "part": np.array([0, 0, 0, 1, 1, 1]),
        "label": np.array([0, 2, 1, 0, 2, 1]),
        "prediction": np.array([0, 2, 0, 0, 0, 0]),
        "loss": np.arange(6.0),
    }
    found = task.metrics(observations)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["accuracy_mismatched"] == pytest.approx(1 / 3)
    assert (found["loss"], found["loss_mismatched"]) == (1.0, 4.0)
    parts = np.concatenate([batch["part"] for batch in task.evaluation_loader("test", 4, 0)])
    assert parts.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_fingerprint_is_of_the_content(root, tmp_path):
    chosen = ["data=glue", "data.task=sst2"]
    here = opened(*chosen, f"data.root={root}").data_fingerprint
    assert here == opened(*chosen, f"data.root={write_glue(tmp_path / 'other')}").data_fingerprint
    changed = tmp_path / "changed"
    write_glue(changed)
    (changed / "SST-2" / "dev.tsv").write_text("sentence\tlabel\ngood\t0\nbad\t1\n")
    assert here != opened(*chosen, f"data.root={changed}").data_fingerprint
    assert here != opened(*chosen, f"data.root={root}", "data.limit=3").data_fingerprint


def test_without_network_and_cache_one_line_names_the_choice(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    task = build_task(text_config("data=glue", "data.task=mnli"))
    with pytest.raises(Refusal, match="data.root=") as caught:
        task.open_data()
    assert "\n" not in str(caught.value) and "data=grammar_nli" in str(caught.value)
    assert ROWS.keys() == {task.folder for task in GLUE.values()}
