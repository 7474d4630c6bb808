import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pdp.errors import Refusal
from pdp.schedule.shapes import make_schedule, starts_after


def test_the_papers_ramp_at_every_boundary():
    schedule = make_schedule("linear", 100, warmup="16ep", rate=0.015)
    fraction = [schedule.fraction(epoch, schedule.start) for epoch in range(100)]
    assert fraction[:16] == [0.0] * 16
    assert fraction[16] == 0.015
    assert fraction[17] == 0.03
    assert fraction[81] == pytest.approx(0.99)
    assert fraction[82:] == [1.0] * 18  # 67 epochs of ramp, 16 to 82
    assert (schedule.start, schedule.length) == (16, 67)


def test_a_ramp_is_a_rate_spelled_otherwise():
    by_ramp = make_schedule("linear", 100, warmup="16ep", ramp="20ep")
    by_rate = make_schedule("linear", 100, warmup="16ep", rate=0.05)
    assert [by_ramp.fraction(e, 16) for e in range(100)] == pytest.approx([by_rate.fraction(e, 16) for e in range(100)])


def test_fractions_of_a_short_run_are_whole_epochs():
    schedule = make_schedule("linear", 12, warmup="0.16", ramp="0.4")
    assert (schedule.start, schedule.length) == (2, 5)
    assert [schedule.fraction(e, 2) for e in range(8)] == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1])


def test_cubic_is_zhu_and_guptas_formula():
    schedule = make_schedule("cubic", 50, warmup="10ep", ramp="20ep")
    for epoch in range(10, 30):
        assert schedule.fraction(epoch, 10) == pytest.approx(1 - (1 - (epoch - 10 + 1) / 20) ** 3)
    assert schedule.fraction(9, 10) == 0 and schedule.fraction(30, 10) == 1


def test_constant_holds_from_the_first_moment_and_oneshot_from_its_start():
    constant = make_schedule("constant", 10, warmup="3ep")
    assert [constant.fraction(e, constant.start) for e in range(10)] == [1.0] * 10
    oneshot = make_schedule("oneshot", 10, warmup="3ep")
    assert [oneshot.fraction(e, oneshot.start) for e in range(10)] == [0.0] * 3 + [1.0] * 7


def test_steps_are_moments_too():
    schedule = make_schedule("linear", 10, warmup="0.1", ramp="200it", unit="step", steps_per_epoch=50)
    assert (schedule.start, schedule.length, schedule.moments) == (50, 200, 500)
    assert schedule.fraction(49, 50) == 0
    assert schedule.fraction(50, 50) == pytest.approx(1 / 200)
    assert schedule.fraction(249, 50) == 1
    by_rate = make_schedule("linear", 10, warmup="0.1", rate=0.25, unit="step", steps_per_epoch=50)
    assert by_rate.length == 200


@given(
    epochs=st.integers(1, 300),
    warmup=st.integers(0, 300),
    ramp=st.integers(1, 300),
    name=st.sampled_from(["linear", "cubic"]),
)
@example(epochs=107, warmup=0, ramp=107, name="linear")
def test_a_ramp_ends_within_the_run_or_is_refused(epochs, warmup, ramp, name):
    if warmup + ramp > epochs:
        with pytest.raises(Refusal, match=r"schedule\.warmup.*schedule\.ramp"):
            make_schedule(name, epochs, warmup=f"{warmup}ep", ramp=f"{ramp}ep")
        return
    schedule = make_schedule(name, epochs, warmup=f"{warmup}ep", ramp=f"{ramp}ep")
    values = [schedule.fraction(epoch, warmup) for epoch in range(epochs)]
    assert values[-1] == 1.0
    assert values == sorted(values)
    assert sum(value == 0 for value in values) == warmup


@given(st.floats(1e-3, 1))
def test_the_length_of_a_rate_is_when_it_is_full(rate):
    schedule = make_schedule("linear", 2000, warmup="0ep", rate=rate)
    assert schedule.fraction(schedule.length - 1, 0) == pytest.approx(1.0)
    assert schedule.fraction(schedule.length - 2, 0) < 1 or schedule.length == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "linaer"}, "schedule=linaer"),
        ({"ramp": "3ep", "rate": 0.1}, "twice"),
        ({"rate": 0.0}, "schedule.rate=0.0"),
        ({"rate": math.nan}, "schedule.rate=nan"),
        ({"rate": 1.5}, "schedule.rate=1.5"),
        ({"unit": "day"}, "schedule.unit=day"),
        ({"unit": "step"}, "steps_per_epoch"),
        ({"warmup": "soon"}, "schedule.warmup=soon"),
    ],
)
def test_what_does_not_fit_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        make_schedule(values.pop("name", "linear"), 100, **values)


def test_the_automatic_start_needs_five_epochs_running_over_half():
    assert not starts_after([0.6] * 4)
    assert starts_after([0.6] * 5)
    assert not starts_after([0.6, 0.6, 0.5, 0.6, 0.6])
    assert starts_after([0.1, 0.6, 0.51, 0.7, 0.6, 0.6])
    assert not starts_after([0.9] * 5, upper_bound=2.0)


def test_phases_are_moments_of_change_and_the_authors_where_none_are_said():
    own = make_schedule("alternating", 100)
    pruned = [epoch for epoch in range(100) if own.fraction(epoch, 0)]
    expected = [e for start in range(10, 80, 10) for e in range(start, start + 5)] + list(range(85, 100))
    assert pruned == expected
    given_ = make_schedule("alternating", 200, phases=["20ep", "40ep", "60ep", "0.4", "190ep"])
    pruned = [epoch for epoch in range(200) if given_.fraction(epoch, 0)]
    assert pruned == [*range(20, 40), *range(60, 80), *range(190, 200)]
    in_steps = make_schedule("alternating", 4, unit="step", steps_per_epoch=10, phases=["5it", "1ep", "30it"])
    assert [step for step in range(40) if in_steps.fraction(step, 0)] == [*range(5, 10), *range(30, 40)]


@pytest.mark.parametrize(
    ("name", "phases", "said"),
    [
        ("alternating", ["10ep", "20ep"], "odd"),
        ("alternating", ["20ep", "10ep", "30ep"], "grow"),
        ("alternating", ["10ep", "10ep", "30ep"], "grow"),
        ("alternating", ["10ep", "20ep", "50ep"], "within"),
        ("alternating", ["often"], "not a time"),
        ("linear", ["10ep"], "schedule=alternating"),
    ],
)
def test_phases_that_are_none_are_refused(name, phases, said):
    with pytest.raises(Refusal, match=r"schedule\.phases") as refused:
        make_schedule(name, 50, phases=phases, **({} if name == "alternating" else {"warmup": 0}))
    assert said in str(refused.value)
