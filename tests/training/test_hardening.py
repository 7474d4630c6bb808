"""The gap between the soft and the hard model: when it is reported, and what reduces it."""

import json
import warnings

import pytest

from pdp.config.compose import compose
from pdp.runs.record import read_record
from pdp.schedule.shapes import make_schedule
from pdp.training.hardening import gap_note
from pdp.training.run import train

pytestmark = pytest.mark.slow

WORDS = ["model=resnet20", "data=digits", "sparsity=0.9"]


@pytest.mark.parametrize(
    ("soft", "hard", "higher", "told"),
    [(0.90, 0.896, True, False), (0.90, 0.894, True, True), (0.5, 0.9, True, False), (0.7, 0.1, True, True),
     (20.0, 20.05, False, False), (20.0, 21.0, False, True), (21.0, 20.0, False, False),
     (float("nan"), 0.9, True, False)],
)  # fmt: skip
def test_over_half_a_point_it_is_told(soft, hard, higher, told):
    note = gap_note(compose(WORDS), "top1" if higher else "perplexity", higher, soft, hard)
    assert bool(note) == told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "method=pdp_annealed"),
        (["method.temperature_mode=relative", "method.kappa=1"], "method=pdp_annealed"),
        (["method.temperature_mode=learned"], "method=pdp_annealed"),
        (["method=pdp_annealed"], "method.kappa_end=9e-05"),
        (
            ["method.anneal=linear", "method.temperature_mode=absolute", "method.temperature_end=1e-5"],
            "temperature_end",
        ),
        ([], "a lower method.temperature"),
        (["prune=channel"], "a lower method.kappa"),
        (
            ["prune=channel", "method.temperature=1e-3", "method.temperature_mode=absolute"],
            "a lower method.temperature",
        ),
        (["method=cs"], "recalibrate_bn"),
        (["method=cs"], "method.controller=cubic"),
        (["method=gmp", "recipe.recalibrate_bn=5"], "recipe.epochs"),
    ],
)
def test_what_closes_it(words, said):
    assert said in gap_note(compose([*WORDS, *words]), "top1", True, 0.9, 0.5)


@pytest.mark.parametrize(("method", "soft"), [("pdp", True), ("cs", True), ("gmp", False), ("sfp", False)])
def test_only_a_soft_mask_is_called_soft(method, soft):
    prune = ["prune=channel"] if method == "sfp" else []
    note = gap_note(compose([*WORDS, f"method={method}", *prune]), "top1", True, 0.9, 0.5)
    assert ("still soft" in note) == soft and ("% soft, " in note) == soft
    assert soft or note.startswith("the hard model is worse than the one in training (top1 90.00 % in training, ")


def test_a_run_that_ends_before_its_target_is_told_whatever_it_cost():
    config = compose([*WORDS, "schedule=sigmoid", "recipe.epochs=2", "recipe.lr_warmup=0"])
    note = gap_note(config, "top1", True, 0.5, 0.5, 0.25)
    start = "training ended at 25.00 % of the target: the rest was pruned untrained"
    assert note == f"{start}; give recipe.epochs=20 or schedule.unit=step"
    assert gap_note(config, "top1", True, 0.9, 0.5, 0.25).startswith(
        f"{start} (top1 90.00 % soft, 50.00 % hard); give "
    )
    made = make_schedule("sigmoid", 20)
    assert made.fraction(19, 0) == 1 > make_schedule("sigmoid", 19).fraction(18, 0)


@pytest.mark.parametrize(("unit", "told"), [("epoch", True), ("step", False)])
def test_a_records_notes_say_where_training_ended(unit, told, tmp_path, capsys):
    words = ["method=gmp", "schedule=sigmoid", f"schedule.unit={unit}", "recipe.epochs=2", "recipe.lr_warmup=0"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own word of it
        train(compose([*WORDS, *words, "data.limit=128", "device=cpu", f"output_dir={tmp_path}"]))
    (path,) = tmp_path.glob("*/seed0")
    notes = [note for note in read_record(path).notes if note.startswith("training ended at ")]
    assert len(notes) == told and ("training ended at" in capsys.readouterr().out) == told
    assert all("recipe.epochs=20 or schedule.unit=step" in note for note in notes)


def test_a_run_with_a_soft_end_says_so(tmp_path, capsys):
    words = ["recipe.epochs=3", "recipe.lr_warmup=0", "data.limit=256", "method.temperature_mode=relative"]
    train(compose([*WORDS, *words, "method.kappa=3", "device=cpu", f"output_dir={tmp_path}"]))
    (path,) = tmp_path.glob("*/seed0")
    record = read_record(path)
    told = [note for note in record.notes if "still soft" in note]
    assert len(told) == (record.metric_soft - record.metric > 0.005)
    assert ("still soft" in capsys.readouterr().out) == bool(told)
    history = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    assert all(0 < line["alive"] <= 1 for line in history) and history[-1]["temperature"] is not None
