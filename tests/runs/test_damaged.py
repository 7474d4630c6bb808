"""What a run has stored and someone has damaged: one line that names the file, and no traceback."""

import json
import shutil
from pathlib import Path

import pytest
from record_values import record_values

from pdp.config.command_line import main
from pdp.config.stored import read_config
from pdp.errors import Refusal
from pdp.runs.record import Record, read_record
from pdp.runs.store import read_run

ROOT = Path(__file__).resolve().parents[2]
OLD = next((ROOT / "tests" / "old_runs").glob("*/seed0"))


@pytest.fixture
def run(tmp_path):
    shutil.copytree(OLD, tmp_path / "seed0")
    return tmp_path / "seed0"


CONTENTS = {
    "binary": (b"\xa4\x00\xff\xfe" * 20, "cannot be read .*decode"),
    "utf-16": ("model: 3".encode("utf-16"), "cannot be read .*decode"),
    "latin-1": ("model: gr\xfc\xdfe".encode("latin-1"), "cannot be read .*decode"),
    "control characters": (b"model: \x01\x02", "not a run's config.yaml: .*not allowed"),
    "empty": (b"", "not a run's config.yaml: Missing key"),
    "a list": (b"[1, 2]", "not a run's config.yaml"),
    "a text": (b"hello", "not a run's config.yaml"),
    "unclosed": (b"model: {", "not a run's config.yaml"),
    "a tag": (b"!!python/object:os.system {}", "not a run's config.yaml"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_config_that_is_none_is_told_in_one_line(name, run, capsys, tmp_path):
    content, words = CONTENTS[name]
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(Refusal, match=f"^{run}/config.yaml(:| ).*{words}") as told:
        read_config(run)
    assert "\n" not in str(told.value)
    assert main("evaluate", [f"run={run}"]) == 2
    assert main("train", [f"from={run}", f"output_dir={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2 and all(f"{run}/config.yaml" in line for line in said), said


def test_a_config_that_is_not_there_or_a_folder_is_told_too(run):
    (run / "config.yaml").unlink()
    with pytest.raises(Refusal, match=f"^run={run} has no config.yaml"):
        read_config(run)
    (run / "config.yaml").mkdir()
    with pytest.raises(Refusal, match=f"^{run}/config.yaml cannot be read .*directory.*: restore it"):
        read_config(run)


VALUES = [
    ("batch_size: 64", "batch_size: 0", "recipe.batch_size=0 is out of range: give recipe.batch_size at least 1"),
    ("batch_size: 64", "batch_size: -8", "recipe.batch_size=-8 is out of range"),
    ("batch_size: 64", "batch_size: null", "batch_size"),
    ("workers: 0", "workers: -2", "data.workers=-2 is out of range"),
    ("max_length: 32", "max_length: 0", "data.max_length=0 is out of range: give data.max_length at least 8 tokens"),
    ("precision: fp32", "precision: fp8", "recipe.precision=fp8: no such choice; "),
    ("device: auto", "device: tpu", "device=tpu: no such choice"),
    ("source: grammar", "source: gramar", "data.source=gramar: no such choice; did you mean grammar"),
    ("optimizer: adamw", "optimizer: adam", "recipe.optimizer=adam: no such choice"),
    ("validation: 0.1", "validation: 1.5", "data.validation=1.5 is out of range"),
    ("validation: 0.1", "validation: .nan", "data.validation=nan is out of range"),
]


@pytest.mark.parametrize(("old", "new", "words"), VALUES)
def test_values_that_no_command_line_takes_are_not_taken_from_a_config(old, new, words, run, capsys):
    text = (run / "config.yaml").read_text()
    assert text.count(f"{old}\n") == 1
    (run / "config.yaml").write_text(text.replace(f"{old}\n", f"{new}\n"))
    assert main("evaluate", [f"run={run}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{run}/config.yaml: " in line and words in line


KINDS = {
    "metric": [(None, "null and not a number"), ("0.9", '"0.9" and not a number'), (True, "true and not a number")],
    "metrics": [([0.9], "not values by name, each of which is a number"), ({"accuracy": None}, "not values by name")],
    "params_nonzero": [(1.5, "1.5 and not a whole number"), (None, "null and not a whole number")],
    "macs": [("many", '"many" and not a whole number or null')],
    "classes": [("ab", '"ab" and not a list in which each entry is a text'), ([1, 2], "not a list"), (None, "null")],
    "recipe": [(["epochs"], "not values by name")],
    "ran_under": [([3], "not a list in which each entry is values by name")],
    "metric_name": [(3, "3 and not a text"), (["accuracy"], "not a text")],
    "quantize": [(None, "null and not a text")],
    "notes": [("x" * 400, "xxx... and not a list")],
}


@pytest.mark.parametrize("key", KINDS)
def test_a_record_s_values_of_another_kind_are_told_by_their_key(key, run, capsys):
    sound = json.loads((run / "record.json").read_text())
    for value, words in KINDS[key]:
        (run / "record.json").write_text(json.dumps(sound | {key: value}))
        with pytest.raises(Refusal) as told:
            read_record(run)
        assert f"run={run}: record.json cannot be read ({key} is " in str(told.value) and words in str(told.value)
        assert "\n" not in str(told.value) and len(str(told.value)) < 300 + len(str(run))
        assert read_run(run).status == "damaged"
        assert main("evaluate", [f"run={run}"]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_record_without_a_field_or_of_another_metric_is_told(run, capsys):
    sound = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({key: one for key, one in sound.items() if key != "metric"}))
    with pytest.raises(Refusal, match="it has no metric"):
        read_record(run)
    for content in ("[]", "3", '"metric"', "null", "[" * 100_000):
        (run / "record.json").write_text(content)
        with pytest.raises(Refusal, match=r"record\.json cannot be read"):
            read_record(run)
        assert read_run(run).status == "damaged"
    (run / "record.json").write_text(json.dumps(sound | {"metric_name": "top1"}))
    assert main("evaluate", [f"run={run}"]) == 2
    assert "its record is of top1, and what its config.yaml names is measured by accuracy" in capsys.readouterr().err


def test_every_record_there_is_still_loads(tmp_path):
    paths = [*(ROOT / "results").rglob("record.json"), *(ROOT / "tests" / "old_runs").rglob("record.json")]
    assert len(paths) > 100
    for path in paths:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = read_record(path.parent)
        assert all(repr(getattr(record, key)) == repr(values[key]) for key in values if hasattr(record, key))
    (tmp_path / "record.json").write_text(json.dumps(record_values(macs=None, metric=1, a_key_of_later=[])))
    assert isinstance(read_record(tmp_path), Record)  # whole numbers are numbers, null where it may be
