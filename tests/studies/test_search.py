"""Tuning: what is drawn, equal numbers of trials for every method, resuming, and which setting is chosen."""

import json
import sys
from pathlib import Path

import pytest

from pdp.config.compose import compose
from pdp.config.identity import changed_values, config_hash
from pdp.errors import Refusal
from pdp.runs.record import RECORD
from pdp.studies.runs import choose
from pdp.studies.search import BLIND, Span, draw, words_of
from pdp.studies.study import merged, read_study
from pdp.studies.tuning import draw_trials, groups, report
from scripts import compare, tune

ROOT = Path(__file__).resolve().parents[2]
SMALL = """
common: [model=resnet20, data=digits, prune=random, debug=smoke, device=cpu, recipe.epochs=3]
sparsities: [0.5, 0.7]
seeds: [0, 1]
stages:
  - {sparsities: [0.5], seeds: [0], methods: [dense, gmp]}
  - {sparsities: [0.7], seeds: [1], methods: [gmp]}
methods:
  dense:
  gmp: [[allocation=global]]
tuning: {seed: 10, trials: 2, words: [recipe.epochs=2], of: {gmp: [schedule.warmup=0]}}
search:
  all: {recipe.lr: {low: 0.02, high: 0.2, log: true}}
  gmp: {budget: [[method.budget=fixed], [method.budget=moving]]}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    return read_study(tmp_path / "small.yaml")


def test_every_method_and_the_dense_model_get_as_many_trials_at_each_sparsity(study, tmp_path):
    assert list(groups(study)) == [("dense", None), ("gmp", 0.5), ("gmp", 0.7)]
    assert draw_trials(study, tmp_path, 4) == 6 and draw_trials(study, tmp_path, 4) == 0
    held = json.loads((tmp_path / "studies" / "small_trials.json").read_text())
    assert {key: len(trials) for key, trials in held.items()} == {"dense": 2, "gmp 0.5": 2, "gmp 0.7": 2}
    assert held["gmp 0.5"][0]["words"] == ["allocation=global"]  # the first is the method's own
    assert held["gmp 0.5"][1]["words"] != held["gmp 0.7"][1]["words"]
    for method, sparsity in groups(study):
        for one in held[f"{method} {sparsity}" if sparsity else method]:
            cell = study.trial(method, sparsity, tuple(one["words"]))
            config = compose([*cell.overrides, "dry_run=true"])
            assert (config.recipe.epochs, config.seed) == (2, 10)
            assert method == "dense" or (config.schedule.warmup, config.allocation.name) == ("0", "global")
    again = tmp_path / "elsewhere"
    draw_trials(study, again, 1)
    assert json.loads((again / "studies" / "small_trials.json").read_text()) == held  # whoever draws


def test_stages_are_parts_of_the_table(study):
    first, second = study.at_stage(1), study.at_stage(2)
    assert [(cell.method, cell.sparsity, cell.seed) for name in first.methods for cell in first.runs(name, ())] == [
        ("dense", None, 0), ("gmp", 0.5, 0),
    ]  # fmt: skip
    assert [(cell.method, cell.sparsity, cell.seed) for cell in second.runs("gmp", {0.7: ("a=1",)})] == [
        ("gmp", 0.7, 1)
    ]
    assert {(c.sparsity, c.seed) for c in study.runs("gmp", {0.5: (), 0.7: ()})} == {(0.5, 0), (0.7, 1)}
    with pytest.raises(Refusal, match="stage=3"):
        study.at_stage(3)
    with pytest.raises(Refusal, match="trials of gmp"):
        choose(study, "gmp", Path("nowhere"))


def test_later_trials_look_at_what_is_known():
    space = {"x": Span(0.001, 1.0, log=True), "y": ["a", "b"]}
    known = [({"x": 0.1, "y": 0}, 0.5)] * 0
    blind = draw(space, known, BLIND, 7)
    assert draw(space, [(one, None) for one in blind[:5]], BLIND - 5, 7) == blind[5:]  # one sequence, gone on with
    assert all(0.001 <= one["x"] <= 1 and one["y"] in (0, 1) for one in blind)
    scored = [(one, -abs(one["x"] - 0.03)) for one in blind]
    near = [abs(one["x"] - 0.03) for one in draw(space, scored * 3, 20, 7)]
    assert sorted(near)[10] < sorted(abs(one["x"] - 0.03) for one in blind)[6]  # nearer to the best than chance
    assert words_of(space, {"x": 0.012345, "y": 1}) == ("x=0.0123", "y=b")
    assert words_of({"z": [[], ["a=1", "b=2"]]}, {"z": 1}) == ("a=1", "b=2")
    assert merged(["a=1", "b=2"], ["a=3"]) == ("b=2", "a=3")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trials: 2", "trials"),
        ("low: 0.02", "low"),
        ("high: 0.2", "high"),
        ("stages:\n  - {sparsities: [0.5]", "stage"),
    ],
)
def test_a_search_that_is_none_is_refused(tmp_path, change, said):
    broken = {"trials: 2": "trials: 0", "low: 0.02": "low: 2", "high: 0.2": "top: 1"}
    text = SMALL.replace(change, broken.get(change, "stages:\n  - {sparsities: [0.6]"))
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(Refusal, match=said):
        read_study(tmp_path / "broken.yaml")


@pytest.mark.slow
def test_a_study_is_tuned_goes_on_and_is_run_with_what_did_best(study, tmp_path, capfd, monkeypatch):
    where = ["--results", str(tmp_path / "results"), "--output-dir", str(tmp_path / "runs"), "--jobs", "2"]
    words = [str(tmp_path / "small.yaml"), *where, "--stage", "1"]

    def script(name):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        return {"tune": tune, "compare": compare}[name].main()

    assert script("compare") == 2 and "scripts/tune.py" in capfd.readouterr().err
    assert script("tune") == 0
    kept = sorted((tmp_path / "results" / "records" / "small_tuning").rglob(RECORD))
    assert len(kept) == 4
    times = [path.stat().st_mtime_ns for path in kept]
    removed = kept[0].parent
    for file in removed.iterdir():
        file.unlink()
    assert script("tune") == 0  # what is missing is run again, nothing else
    assert [path.stat().st_mtime_ns for path in kept[1:]] == times[1:] and kept[0].is_file()
    assert script("compare") == 0
    part = study.at_stage(1)
    chosen = choose(part, "gmp", tmp_path / "results")[0.5]
    scores = {}
    for line in report(part, tmp_path / "results").splitlines():
        if line.startswith("| gmp | 0.5"):
            _, _, _, score, setting, _ = (one.strip() for one in line.split("|"))
            scores[setting] = (float(score.strip("*")), "**" in score)
    assert scores[" ".join(chosen)] == (max(score for score, _ in scores.values()), True)
    (record,) = (tmp_path / "results" / "records" / "small").glob("*gmp*/seed0/record.json")
    config = compose(part.runs("gmp", chosen)[0].overrides)
    assert json.loads(record.read_text())["config_hash"] == config_hash(
        config, json.loads(record.read_text())["data_fingerprint"]
    )


def test_old_records_are_found_by_the_words_that_made_them_but_where_the_method_changed():
    """Of the oldest studies: options, floors and revisions that came since move no run of the others."""
    study = read_study(ROOT / "conf" / "study" / "digits_random.yaml")
    records = [
        json.loads(path.read_text()) for path in (ROOT / "results" / "records" / "digits_random_tuning").rglob(RECORD)
    ]
    held = {record["config_hash"] for record in records}
    (fingerprint,) = {record["data_fingerprint"] for record in records}
    for method in study.methods:
        for cell in study.tuning(method):
            config = compose(cell.overrides)
            changed = "method.revision" in changed_values(config)
            assert changed == (method in ("optg", "rigl")) and (config_hash(config, fingerprint) in held) == (
                not changed
            ), cell.label


def test_a_limit_that_leaves_the_test_set_whole_moves_no_fingerprint(tmp_path):
    """Records of thousands of images stay those of their words, whatever is done to test sets that are cut short."""
    import hashlib

    from pdp.tasks import build_task
    from pdp.tasks.image_data import content_hash, read_digits

    def fingerprint(*words):
        task = build_task(compose(["model=resnet20", "data=digits", "sparsity=0.5", *words]))
        task.open_data()
        return task.data_fingerprint

    plain = hashlib.sha256(content_hash(*read_digits()))
    assert fingerprint() == plain.hexdigest()[:16]
    whole, cut = plain.copy(), plain.copy()
    whole.update(b"limit=400")  # 359 test images, 144 held out
    cut.update(b"limit=300, test as drawn")
    assert fingerprint("data.limit=400") == whole.hexdigest()[:16]
    assert fingerprint("data.limit=300") == cut.hexdigest()[:16]
