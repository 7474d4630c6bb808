"""The matrix of experiments: the published rows and records beside each cell, and costs against arithmetic."""

import dataclasses
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from record_values import record_values

from pdp.errors import Refusal
from pdp.runs.published import load_published
from pdp.runs.record import Record
from pdp.studies.cost import study_table, timed_here
from pdp.studies.plan import (
    find_names,
    find_published,
    gpu_hours,
    plan_table,
    read_gpu_benchmarks,
    read_plan,
    swept,
)
from pdp.studies.study import Cell, Study
from scripts import plan

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "digits/mobilenet_v1_random_866",
    "glue/bert_base_mnli_movement_soft_90",
    "glue/bert_base_mnli_pofa_finetune_90",
    "gpt2/gpt2_wikitext_2_pdp_90",
    "imagenet/mobilenet_v1_random_866",
    "imagenet/resnet50_channel_macs_50_chex",
    "imagenet/resnet50_nm_2_4_srste",
    "imagenet/resnet50_random_90_gmp",
    "imagenet/resnet50_random_90_pdp_optg_budget",
    "imagenet/resnet50_random_90_pdp_str_budget",
    "imagenet/resnet50_dense",
]


def record(**values) -> Record:
    known = {one.name for one in dataclasses.fields(Record)}
    return Record(**{key: value for key, value in (record_values() | values).items() if key in known})


@pytest.fixture(scope="module")
def cells():
    return {cell.experiment: cell for cell in read_plan(NAMES)}


@pytest.fixture(scope="module")
def published():
    return load_published(ROOT / "results" / "published.csv")


def test_a_cells_command_names_what_only_the_user_knows(cells):
    commands = [cells[name].command for name in NAMES]
    assert commands[0] == "python train.py experiment=digits/mobilenet_v1_random_866"
    assert commands[2].endswith(" model.pretrained=<...>")
    assert commands[-2].endswith(" data.root=<...>") and "allocation" not in commands[-2]  # STR's own budget is here
    assert commands[-3].endswith(" allocation.path=<...> data.root=<...>")


def test_published_rows_are_those_of_the_same_cell(cells, published):
    def values(name):
        return find_published(cells[name], published).value.tolist()

    assert values("imagenet/mobilenet_v1_random_866") == [0.682]
    assert values("imagenet/resnet50_nm_2_4_srste") == [0.77, 0.771]  # both of its layouts
    assert values("imagenet/resnet50_random_90_gmp") == [0.7391, 0.7516]  # and extended
    assert values("imagenet/resnet50_channel_macs_50_chex") == [0.774]  # 2 G of 4.1 G
    assert values("glue/bert_base_mnli_movement_soft_90") == [0.812]  # on the matched part
    assert values("digits/mobilenet_v1_random_866") == []  # other data
    assert values("imagenet/resnet50_random_90_pdp_str_budget") == []
    assert min(values("imagenet/resnet50_dense")) > 0.75 and len(values("imagenet/resnet50_dense")) == 8


def test_a_sweep_adds_its_sparsities_with_their_own_published_rows(cells, published):
    found = [cell for cell in swept(list(cells.values())) if cell.experiment == "imagenet/resnet50_random_90_gmp"]
    assert [cell.sparsity for cell in found] == [0.9, 0.75, 0.8, 0.85, 0.95, 0.98, 0.99]
    assert found[2].command.endswith("experiment=imagenet/resnet50_random_90_gmp sparsity=0.8 data.root=<...>")
    assert find_published(found[2], published).sparsity.tolist() == [0.8, 0.8]  # uniform and extended
    untouched = [cell for cell in swept([cells["imagenet/resnet50_random_90_pdp_str_budget"]])]
    assert len(untouched) == 1  # its sparsity is the budget's


def test_our_records_stand_beside_their_cell_and_tuning_runs_do_not(cells, published):
    ours = record(model="mobilenet_v1", data="digits", method="pdp", pattern="random", target_sparsity=0.866,
                  target_unit="weight", allocation="global", metric=0.96, metric_name="top1")  # fmt: skip
    kept = {"a": [ours, dataclasses.replace(ours, metric=0.94)], "a_tuning": [dataclasses.replace(ours, metric=0.1)]}
    other = dataclasses.replace(ours, config_hash="1" * 16, metric=0.91)
    kept["b"] = [dataclasses.replace(ours, target_sparsity=0.9), other, dataclasses.replace(ours, method="gmp")]
    table = plan_table(list(cells.values()), published, kept, []).set_index("experiment")
    assert table.ours["digits/mobilenet_v1_random_866"] == "95.00 % (2 runs); 91.00 % (1 run)"
    assert (table.ours.drop("digits/mobilenet_v1_random_866") == "").all()
    assert table.published["imagenet/mobilenet_v1_random_866"] == (
        "PDP 68.20 % at 86.6 % [verified: PDP abstract (arXiv 2305.11203 / NeurIPS 2023)]"
    )
    assert table.gpu_hours.isna().all() and set(table.speed_from) == {"not measured"}  # digits were run on a CPU


def test_gpu_hours_come_from_steps_that_were_measured(cells):
    cell = cells["imagenet/resnet50_random_90_gmp"]
    run = record(model="resnet50", data="imagenet", method="dense", device="NVIDIA X", steps=500_000, epochs=100,
                 step_ms_median=72.0, world_size=4)  # fmt: skip
    hours, source = gpu_hours(cell, [run], [])
    assert hours == pytest.approx(5000 * 102 * 0.072 * 4 / 3600) and source == "dense's step on NVIDIA X"
    assert math.isnan(gpu_hours(cell, [dataclasses.replace(run, device="cpu, 2 threads")], [])[0])
    assert math.isnan(gpu_hours(cell, [dataclasses.replace(run, model="resnet18")], [])[0])
    benchmark = {"model": "resnet50", "batch": 256, "dense_ms": 100.0, "pdp_ms": 110.0, "device": "NVIDIA X"}
    hours, source = gpu_hours(cell, [], [benchmark])
    assert hours == pytest.approx(1_281_167 / 256 * 102 * 0.1 / 3600) and source == "dense step on NVIDIA X"
    assert gpu_hours(cells["imagenet/mobilenet_v1_random_866"], [], [benchmark])[1] == "not measured"


def test_benchmarks_on_a_cpu_and_files_of_another_kind_count_for_nothing(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    row = {"model": "resnet50", "batch": 1, "dense_ms": 1.0, "pdp_ms": 1.0}
    for name, device in (("cpu", "x86_64"), ("gpu", "NVIDIA X")):
        text = json.dumps({"machine": {"device": device}, "results": [row, {"latency_ms": 3}]})
        (tmp_path / "benchmarks" / f"{name}.json").write_text(text)
    (tmp_path / "benchmarks" / "other.json").write_text("[]")
    assert read_gpu_benchmarks(tmp_path) == [row | {"device": "NVIDIA X"}]


def test_a_studys_cost_is_that_of_its_kept_runs():
    common = ("model=resnet20", "data=digits", "prune=random")
    methods = {"dense": [()], "gmp": [(), ("schedule.warmup=0",)], "str": [()]}
    study = Study("s", common, [0.5, 0.9], [0, 1, 2], 10, 0.9, methods)
    kept = {"s": [record(method="dense", train_seconds=20.0), record(method="gmp", train_seconds=30.0)],
            "s_tuning": [record(method="gmp", train_seconds=50.0)]}  # fmt: skip
    row = study_table([study], kept).iloc[0]
    # 3 dense runs; 2 settings tried and 6 runs of gmp; 6 of str, which costs what the others do in the middle.
    assert (row.runs, row.kept) == (3 + 8 + 6, 3)
    assert row.cpu_hours == pytest.approx((3 * 20 + 8 * 40 + 6 * 30) / 3600)
    row = study_table([study], {"other": [record(model="resnet18", train_seconds=1.0)]}).iloc[0]
    assert math.isnan(row.cpu_hours) and row.seconds_from == "no record"


def test_a_study_without_records_is_timed_a_method_once():
    study = Study(
        "s", ("model=resnet20", "data=digits"), [0.5], [0, 1], 10, 0.5, {"dense": [()], "gmp": [(), ("a=1",)]}
    )
    asked = []

    def measure(cell: Cell) -> float:
        asked.append(cell.method)
        return {"dense": 10.0, "gmp": 30.0}[cell.method]

    row = study_table([study], {}, measure).iloc[0]
    assert row.cpu_hours == pytest.approx((2 * 10 + 4 * 30) / 3600) and row.seconds_from.startswith("steps timed here")
    assert asked == ["dense", "gmp"]
    kept = {"s": [record(method="dense", train_seconds=20.0)]}
    assert study_table([study], kept, measure).cpu_hours[0] == pytest.approx(6 * 20 / 3600) and len(asked) == 2


def test_steps_that_are_timed_grow_with_the_epochs_and_a_run_that_is_refused_has_no_cost():
    words = ("model=resnet20", "data=digits", "prune=random", "recipe.batch_size=8")
    short, long = (
        timed_here(Cell("s", "pdp", (), 0.9, 0, (*words, f"recipe.epochs={epochs}"))) for epochs in (10, 1000)
    )
    assert 0 < 5 * short < long
    assert math.isnan(timed_here(Cell("s", "pdp", (), 0.9, 0, (*words, "recipe.lr=-1"))))


def test_a_word_that_no_experiment_has_is_refused():
    assert find_names(["gpt2", "nm_2"], NAMES) == [NAMES[3], NAMES[6]]
    assert find_names([], NAMES) == NAMES
    with pytest.raises(Refusal, match="resnet99: no experiment"):
        find_names(["gpt2", "resnet99"], NAMES)


def test_the_script_writes_experiments_and_every_study(tmp_path, capsys):
    words = ["gpt2_wikitext_2_pdp", "resnet50_random_90_gmp"]
    assert plan.main([*words, "--csv", str(tmp_path / "plan.csv")]) == 0
    out = capsys.readouterr().out
    assert "python train.py experiment=imagenet/resnet50_random_90_gmp data.root=<...>" in out
    assert pd.read_csv(tmp_path / "plan.csv").experiment.tolist() == [NAMES[3], *7 * [NAMES[7]]]
    studies = pd.read_csv(tmp_path / "plan_studies.csv").set_index("study")
    assert studies.runs["fashion_random"] == 96 and studies.runs["pdp_ablations"] == 80
