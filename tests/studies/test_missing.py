"""Which runs of a study have no record yet."""

import pandas as pd
import pytest
import yaml

from pdp.studies.missing import missing_runs, missing_words
from pdp.studies.study import read_study

STAGED = {
    "common": ["model=resnet20", "data=digits", "prune=random"],
    "sparsities": [0.9, 0.8],
    "seeds": [0, 1],
    "methods": {"dense": None, "pdp": None, "str": None},
    "stages": [
        {"sparsities": [0.9], "methods": ["dense", "pdp"]},
        {"sparsities": [0.8], "methods": ["str"], "seeds": [1]},
    ],
    "tuning": {"seed": 10},
}


def study_of(tmp_path, values):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return read_study(path)


def runs_of(*rows):
    return pd.DataFrame(rows, columns=["method", "target_sparsity", "seed"])


def test_of_a_study_in_stages_every_cell_of_every_stage_counts_once(tmp_path):
    study = study_of(tmp_path, STAGED)
    kept = runs_of(("dense", 0.0, 0), ("dense", 0.0, 1), ("pdp", 0.9, 1))
    absent, total = missing_runs(study, kept)
    assert total == 5  # dense and pdp with two seeds each, str with one
    assert sorted((cell.method, cell.sparsity, cell.seed) for cell in absent) == [("pdp", 0.9, 0), ("str", 0.8, 1)]
    assert missing_words(study, kept) == "missing, 2 of 5 runs: pdp 0.9 (seed 0); str 0.8 (seed 1)"


@pytest.mark.parametrize("name", ["str", "str (revision 1)"])
def test_a_whole_study_says_nothing_whatever_the_revision(tmp_path, name):
    study = study_of(tmp_path, STAGED)
    rows = [("dense", 0.0, 0), ("dense", 0.0, 1), ("pdp", 0.9, 0), ("pdp", 0.9, 1), (name, 0.8, 1)]
    assert missing_words(study, runs_of(*rows)) == ""
    assert missing_runs(study, runs_of(*rows[:-1], (name, 0.9, 1)))[
        0
    ]  # the same method at another share is another cell


def test_where_nothing_is_tuned_each_setting_has_its_own_runs(tmp_path):
    values = STAGED | {"tuning": "none", "methods": {"dense": None, "pdp": [["method.refresh=2"], []]}}
    values.pop("stages")
    study = study_of(tmp_path, values)
    kept = runs_of(*(("pdp method.refresh=2", one, seed) for one in (0.8, 0.9) for seed in (0, 1)))
    absent, total = missing_runs(study, kept)
    assert total == 10 and {cell.method for cell in absent} == {"dense", "pdp"} and len(absent) == 6
    assert "pdp 0.9 (seeds 0, 1)" in missing_words(study, kept)
