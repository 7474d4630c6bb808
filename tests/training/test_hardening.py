"""The gap between the soft and the hard model: when it is reported, and what reduces it."""

import json

import pytest

from pdp.config.compose import compose
from pdp.runs.record import read_record
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
        (["method=cs"], "recalibrate_bn"),
    ],
)
def test_what_closes_it(words, said):
    assert said in gap_note(compose([*WORDS, *words]), "top1", True, 0.9, 0.5)


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
