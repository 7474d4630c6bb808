"""Intervals and paired tests against tables, R's output and enumeration; the dense run that belongs to each run."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from record_values import record_values
from scipy import stats

from pdp.reports.runs import read_kept, read_runs
from pdp.reports.statistics import cell_of, holm, interval, mean, paired, summarise, with_dense
from pdp.runs.record import Record, write_record

# Student (1908), R's data set `sleep`: hours gained with two drugs, ten patients.
FIRST = pd.Series([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SECOND = pd.Series([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
# Darwin's corn, cross- less self-fertilised, as Wilcoxon (1945) has it.
CORN = pd.Series([6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75], dtype=float)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062047362), (3, 4.3026527297), (5, 2.7764451052)])
def test_an_interval_is_the_quantile_of_students_table(count, quantile):
    values = np.linspace(0.9, 0.95, count) ** 2
    spread = math.sqrt(sum((one - values.mean()) ** 2 for one in values) / (count - 1))
    assert interval(values) == pytest.approx(quantile * spread / math.sqrt(count), rel=1e-9)
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert (mean(values) - interval(values), mean(values) + interval(values)) == pytest.approx((low, high))


def test_one_value_has_no_interval():
    assert math.isnan(interval([0.9])) and math.isnan(mean([])) and mean([0.9]) == 0.9


def test_paired_t_is_that_of_r():
    found = paired(FIRST, SECOND)
    assert found.pairs == 10 and found.difference == pytest.approx(-1.58)
    assert (found.difference - found.interval, found.difference + found.interval) == pytest.approx(
        (-2.4598858, -0.7001142), abs=1e-7
    )
    assert found.p_t == pytest.approx(0.00283289, abs=1e-8)
    assert found.p_t == pytest.approx(stats.ttest_rel(FIRST, SECOND).pvalue)


def test_wilcoxon_is_that_of_its_own_example():
    assert paired(CORN, CORN * 0).p_wilcoxon == pytest.approx(0.041259765625)


@pytest.mark.parametrize("differences", [[1, 2, 3, 4, 5], [1, 1, -1, 2, 3], [0, 1, 1, 2, -2], [3, -3, 3, 3, 3, 0, 1]])
def test_wilcoxon_with_ties_and_zeros_is_every_choice_of_signs(differences):
    left = [one for one in differences if one]
    ranks = stats.rankdata(np.abs(left))
    middle = ranks.sum() / 2
    seen = abs(ranks[np.array(left) > 0].sum() - middle)
    signs = itertools.product([0, 1], repeat=len(left))
    as_far = [abs(np.dot(ranks, one) - middle) >= seen - 1e-9 for one in signs]
    # In 359ths, as accuracies are: their differences are equal but for the last bit.
    base = pd.Series(np.linspace(0.9, 0.97, len(differences)))
    found = paired(base + pd.Series(differences) / 359, base)
    assert found.p_wilcoxon == pytest.approx(np.mean(as_far))


def test_what_cannot_be_tested_is_no_number():
    alike = paired(pd.Series([0.5, 0.6]), pd.Series([0.5, 0.6]))
    assert alike.difference == 0 and math.isnan(alike.p_t) and math.isnan(alike.p_wilcoxon)
    one = paired(pd.Series([0.5], index=[3]), pd.Series([0.4, 0.3], index=[3, 4]))
    assert one.pairs == 1 and one.difference == pytest.approx(0.1) and math.isnan(one.p_t) and math.isnan(one.interval)
    assert paired(pd.Series([0.5, 0.6]), pd.Series([0.5, 0.5])).p_wilcoxon == 1.0
    assert paired(pd.Series([0.5], index=[0]), pd.Series([0.5], index=[1])).pairs == 0


def test_pairs_are_those_of_one_seed():
    first = pd.Series([0.9, 0.8, 0.7], index=[0, 1, 2])
    second = pd.Series([0.6, 0.7, 0.9, 0.1], index=[2, 1, 0, 5])
    found = paired(first, second)
    assert found.pairs == 3 and found.difference == pytest.approx(np.mean([0.0, 0.1, 0.1]))


def test_holm_is_that_of_r():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    some = holm([0.5, math.nan, 0.9])
    assert some[0] == 1.0 and math.isnan(some[1]) and some[2] == 1.0


def test_a_summary_is_that_of_numpy():
    frame = pd.DataFrame({"cell": ["a", "a", "b", "a"], "metric": [0.5, 0.75, 0.25, 0.625]})
    row, other = summarise(frame, ["cell"], ["metric"]).to_dict("records")
    values = [0.5, 0.75, 0.625]
    assert (row["seeds"], row["metric_min"], row["metric_max"]) == (3, 0.5, 0.75)
    assert row["metric_mean"] == pytest.approx(np.mean(values)) and row["metric_std"] == pytest.approx(
        np.std(values, ddof=1)
    )
    assert other["seeds"] == 1 and math.isnan(other["metric_interval"])


def keep(folder, study, name, seed, **values):
    path = folder / "records" / study / name / f"seed{seed}"
    path.mkdir(parents=True)
    write_record(Record(**record_values(seed=seed, config_hash=name * 16, **values)), path)
    return path


DENSE = {"method": "dense", "pattern": "none", "target_sparsity": 0.0}


def test_a_run_stands_beside_the_dense_run_of_its_cell_and_seed_and_of_no_other(tmp_path):
    lr = {"recipe": {"epochs": 4, "lr": 0.2}}
    keep(tmp_path, "a", "1", 0, metric=0.5)
    keep(tmp_path, "a", "1", 1, metric=0.5)
    keep(tmp_path, "a", "2", 0, metric=0.5, **lr)
    keep(tmp_path, "a", "3", 0, metric=0.9, **DENSE)
    keep(tmp_path, "b", "3", 0, metric=0.8, **DENSE)
    keep(tmp_path, "b", "3", 1, metric=0.7, **DENSE)
    keep(tmp_path, "a", "4", 0, metric=0.6, distillation={"weight": 0.9}, **DENSE)
    keep(tmp_path, "a_tuning", "3", 1, metric=0.1, **DENSE)
    found = with_dense(read_kept(tmp_path), ["metric"])
    pruned = found[found.method == "pdp"].set_index(["cell", "seed"]).dense_metric
    assert pruned["1" * 8, 0] == 0.9  # its own study before another
    assert pruned["1" * 8, 1] == 0.7  # another study, since its own has none; never one that tuned
    assert math.isnan(pruned["2" * 8, 0])  # another learning rate is another cell
    alone = with_dense(read_kept(tmp_path), ["metric"], elsewhere=False)
    alone = alone[alone.method == "pdp"].set_index(["cell", "seed"]).dense_metric
    assert alone["1" * 8, 0] == 0.9 and math.isnan(alone["1" * 8, 1])


def test_an_option_that_came_later_makes_no_other_cell():
    old = record_values(recipe={"epochs": 4, "lr": 0.1})
    new = record_values(recipe={"epochs": 4, "lr": 0.1, "clip": None, "soft_every": 3, "name": "other"})
    changed = record_values(recipe={"epochs": 4, "lr": 0.1, "clip": 1.0})
    assert cell_of(old) == cell_of(new) != cell_of(changed)


def test_a_record_from_before_an_option_has_its_default(tmp_path):
    path = keep(tmp_path, "a", "1", 0, method_options={"temperature": 1e-3})
    (row,) = read_runs([path]).to_dict("records")
    assert row["method_options"]["temperature"] == 1e-3 and row["method_options"]["temperature_mode"] == "auto"
