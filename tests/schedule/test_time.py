import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdp.errors import Refusal
from pdp.schedule.time import Time


@pytest.mark.parametrize(
    ("text", "epochs", "steps"),
    [
        ("16ep", 16, 1600),
        ("2000it", 20, 2000),
        ("0.16", 16, 1600),
        (0.16, 16, 1600),
        ("0", 0, 0),
        ("1.0", 100, 10000),
        ("2.5ep", 3, 250),
        (Time(3, "ep"), 3, 300),
        ("149it", 1, 149),
        ("150it", 2, 150),
    ],
)
def test_a_time_in_epochs_and_steps_of_a_run_of_100_epochs_of_100_steps(text, epochs, steps):
    time = Time.parse(text)
    assert time.epochs(100, 100) == epochs
    assert time.steps(100, 100) == steps


@pytest.mark.parametrize("text", ["16", "1.5", "-1ep", "ep", "16 epochs", "", "nan", "1e3it", "2.5it", "auto"])
def test_what_is_no_time_is_refused_by_name(text):
    with pytest.raises(Refusal, match="schedule.warmup"):
        Time.parse(text, "schedule.warmup")


def test_a_bare_count_is_told_its_unit():
    with pytest.raises(Refusal, match="16ep"):
        Time.parse("16", "schedule.warmup")


@given(st.integers(0, 10**6), st.sampled_from(["ep", "it"]))
def test_text_and_time_are_two_ways_to_say_one_thing(count, unit):
    assert Time.parse(str(Time.parse(f"{count}{unit}"))) == Time(count, unit)


def test_steps_cannot_become_epochs_without_the_length_of_one():
    with pytest.raises(Refusal, match="steps_per_epoch"):
        Time.parse("2000it").epochs(100)
