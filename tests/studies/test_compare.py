"""Studies: what a file asks for, which setting is chosen, what is run again, and the table against numpy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from record_values import record_values

from pdp.config.compose import compose
from pdp.config.identity import run_directory
from pdp.errors import Refusal
from pdp.reports.study_table import markdown, read_study, study_table
from pdp.runs.record import Record, write_record
from pdp.studies.study import read_study as read_study_file
from scripts import compare as compare_script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
common: [model=resnet20, data=digits, prune=random, debug=smoke, device=cpu]
sparsities: [0.5]
seeds: [0, 1]
tuning: {seed: 10, sparsity: 0.5}
methods:
  dense:
  gmp:
    - [schedule.warmup=0]
    - [schedule.warmup=1ep]
"""


def compare(capfd, *arguments: str) -> SimpleNamespace:
    """What the script does with these arguments, without another start of Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", *arguments])
        code = compare_script.main()
    said = capfd.readouterr()
    return SimpleNamespace(returncode=code, stdout=said.out, stderr=said.err)


def typed(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "scripts/compare.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "study").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cell_of_every_study_composes(path):
    study = read_study_file(path)
    seen = set()
    for method, settings in study.methods.items():
        assert method == "dense" or len(settings) == 3 or not study.tuned or study.search
        for cell in study.cells(method):
            if (cell.method, cell.setting, cell.sparsity) not in seen:
                seen.add((cell.method, cell.setting, cell.sparsity))
                words = [*cell.overrides, "dry_run=true"]  # some need data that is not here
                if any(word.startswith("from=") for word in words):  # a run of another study
                    with pytest.raises(Refusal, match="is no directory"):
                        compose(words)
                    continue
                config = compose(words)
                assert config.method.name == method and config.seed == cell.seed


def test_a_study_is_run_once_and_goes_on_from_what_is_kept(tmp_path, capfd):
    (tmp_path / "small.yaml").write_text(SMALL)
    words = [
        str(tmp_path / "small.yaml"),
        "--results",
        str(tmp_path / "results"),
        "--output-dir",
        str(tmp_path / "runs"),
    ]
    done = compare(capfd, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "records").rglob("record.json")}
    assert len(kept) == 2 + 4
    tuned = [json.loads(path.read_text()) for path in kept if "small_tuning" in path.parts]
    last = {
        record["schedule"]["warmup"]: json.loads((path.parent / "history.jsonl").read_text().splitlines()[-1])["metric"]
        for path, record in zip([path for path in kept if "small_tuning" in path.parts], tuned, strict=True)
    }
    best = "1ep" if last["1ep"] > last["0"] else "0"
    runs = [json.loads(path.read_text()) for path in kept if "small_tuning" not in path.parts]
    assert {record["schedule"]["warmup"] for record in runs if record["method"] == "gmp"} == {best}
    assert sorted(record["seed"] for record in runs if record["method"] == "gmp") == [0, 1]
    assert not list((tmp_path / "runs").rglob("record.json"))

    victim = next(path for path in kept if "small_tuning" not in path.parts)
    victim.unlink()
    again = compare(capfd, *words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": done") == 1
    for path, when in kept.items():
        assert path.is_file() and (path == victim or path.stat().st_mtime_ns == when)


def test_without_tuning_every_setting_is_run_at_every_seed_and_has_a_row(tmp_path, capfd):
    (tmp_path / "each.yaml").write_text(SMALL.replace("tuning: {seed: 10, sparsity: 0.5}", "tuning: none"))
    study = read_study_file(tmp_path / "each.yaml")
    assert study.tuning("gmp") == [] and not study.tuned
    rows = study.rows({})
    assert list(rows) == ["dense", "gmp schedule.warmup=0", "gmp schedule.warmup=1ep"]
    assert [cell.seed for cell in rows["gmp schedule.warmup=1ep"]] == [0, 1]
    words = ["--jobs", "1", "--results", str(tmp_path / "results"), "--output-dir", str(tmp_path / "runs")]
    done = compare(capfd, str(tmp_path / "each.yaml"), *words, "recipe.lr=0.02")  # words may come after options
    assert done.returncode == 0, done.stderr + done.stdout
    kept = [json.loads(path.read_text()) for path in (tmp_path / "results/records/each").rglob("record.json")]
    assert len(kept) == 6 and {one["recipe"]["lr"] for one in kept} == {0.02}
    table = pd.read_csv(tmp_path / "results/studies/each.csv").set_index("method")
    assert set(table.index) == set(rows) and set(table.seeds) == {2}
    for warmup in ("0", "1ep"):
        own = [one["metric"] for one in kept if one["schedule"].get("warmup") == warmup]
        assert table.metric[f"gmp schedule.warmup={warmup}"] == pytest.approx(np.mean(own))


def test_where_the_data_lies_is_no_part_of_what_a_run_of_a_study_is():
    study = read_study_file(ROOT / "conf/study/fashion_random.yaml")
    words = study.runs("pdp", ())[0].overrides
    here, there = (compose([*words, f"data.root={root}"]) for root in ("/data/here", "/data/there"))
    assert here.data.root != there.data.root
    assert run_directory(here, "0123") == run_directory(there, "0123") == run_directory(compose(words), "0123")


def test_a_cell_that_is_refused_leaves_the_others_alone(tmp_path):
    (tmp_path / "half.yaml").write_text(
        "common: [model=resnet20, data=digits, debug=smoke, device=cpu, sparsity=0.5]\nseeds: [0]\n"
        "methods: {dense: , gmp: [[method.update_every=0]], pdp: }\n"
    )
    done = typed(
        str(tmp_path / "half.yaml"), "--results", str(tmp_path), "--output-dir", str(tmp_path / "runs"), "--jobs", "1"
    )
    assert done.returncode == 3
    assert "method.update_every=0" in done.stdout
    assert len(list((tmp_path / "records" / "half").rglob("record.json"))) == 1  # dense refuses sparsity as well


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no study"),
        ("common: [a=1]\nseeds: [0]", "methods"),
        ("common: [a=1]\nseeds: [0, 10]\nmethods: {pdp: }", "tuning.seed=10"),
        ("common: [a=1]\nseeds: [x]\nmethods: {pdp: }", "is no study"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(Refusal, match=words):
        read_study_file(tmp_path / "bad.yaml")


def kept(folder: Path, **values) -> Path:
    """A record below `folder`, in a directory of its own."""
    path = folder / f"{values['method']}-{values.get('config_hash', '')}-{values['seed']}"
    path.mkdir(parents=True)
    write_record(Record(**record_values(**values)), path)
    return path


def test_the_table_is_that_of_numpy_and_scipy(tmp_path):
    from scipy import stats

    metrics = [0.91, 0.94, 0.90, 0.97, 0.93]
    folder = tmp_path / "records" / "some"
    for seed, metric in enumerate(metrics):
        values = {"macs_sparse": 100 + seed, "step_ms_median": 30.0 + 7 * seed, "peak_memory_mb": 500.0 + seed}
        kept(
            folder,
            method="pdp",
            pattern="random",
            target_sparsity=0.9,
            sparsity=0.9,
            metric=metric,
            seed=seed,
            **values,
        )
    for seed, step in enumerate((10.0, 20.0, 40.0)):
        values = {"step_ms_median": step, "peak_memory_mb": 400, "config_hash": "d" * 16}
        kept(folder, method="dense", pattern="none", target_sparsity=0.0, metric=0.99, seed=seed, **values)
    table = study_table(read_study(tmp_path, "some"))
    frame = table.set_index("method")
    low, high = stats.t.interval(0.95, 4, loc=np.mean(metrics), scale=stats.sem(metrics))
    assert frame.metric["pdp"] == pytest.approx(np.mean(metrics))
    assert frame.interval["pdp"] == pytest.approx((high - low) / 2)
    assert frame.step_ratio["pdp"] == pytest.approx(np.median([30 / 10, 37 / 20, 44 / 40]))
    assert study_table(read_study(tmp_path, "some"), {"pdp": 1.5}).set_index("method").step_ratio["pdp"] == 1.5
    assert frame.extra_memory_mb["pdp"] == pytest.approx(101.0)
    assert frame.macs_sparse["pdp"] == pytest.approx(102.0)
    assert frame.seeds.to_dict() == {"dense": 3, "pdp": 5}
    assert f"93.00 ± {100 * (high - low) / 2:.2f} %" in markdown(table)


def test_a_method_of_several_configurations_has_a_row_for_each(tmp_path):
    folder = tmp_path / "records" / "some"
    for seed in (0, 1):  # the setting that was chosen at first, and the one that is now
        kept(folder, method="pdp", recipe={"lr": 0.1}, config_hash="a" * 16, seed=seed, metric=0.5 + seed / 10)
        kept(folder, method="pdp", recipe={"lr": 0.2}, config_hash="b" * 16, seed=seed, metric=0.8 + seed / 10)
        # One configuration, whose weights at the start are another run's for each seed.
        kept(folder, method="held", pretrained=f"run 0-{seed}", config_hash=f"{seed}" * 16, seed=seed, metric=0.3)
    frame = study_table(read_study(tmp_path, "some")).set_index("method")
    assert frame.metric.to_dict() == pytest.approx({"pdp (bbbbbbbb)": 0.85, "pdp (aaaaaaaa)": 0.55, "held": 0.3})
    assert set(frame.seeds) == {2}
