"""A short soak test in the gate; scripts/soak.py runs for as long as it is told."""

import json
import random

import pytest

from pdp.benchmarks.misfortunes import KINDS, trial
from pdp.benchmarks.soaking import CASES, Soak
from pdp.methods.options import OPTIONS
from scripts import soak

pytestmark = pytest.mark.kills


def test_misfortunes_at_random_change_nothing(tmp_path):
    table = tmp_path / "soak.json"
    code = soak.main(["--minutes", "0.25", "--seed", "1", "--to", str(table), "--folder", str(tmp_path / "runs")])
    values = json.loads(table.read_text())
    assert code == 0 and not values["machine"]["not_held"]
    everything, *rows = values["results"]
    assert everything["tried"] == everything["held"] > 0
    assert all(row["tried"] == row["held"] for row in rows)
    of_kinds = [row for row in rows if row["trials"] in KINDS]
    for column in ("tried", "kills"):
        assert sum(row[column] for row in of_kinds) == everything[column]


class Early(random.Random):
    """Draws what lies early in a range, and of several the first."""

    def uniform(self, a, b):
        return a + 0.3 * (b - a)

    def randint(self, a, b):
        return a

    def choice(self, several):
        return several[0]


def test_the_first_trial_of_a_case_strikes_a_run_at_work(tmp_path):
    """The run that it is held against is made before, not while the other one is going."""
    made = Soak(tmp_path, Early())
    trial(made, "killed (SIGKILL) up to three times", "dense")
    assert made.kills == 1


def test_every_method_is_among_the_cases():
    words = " ".join(word for case in CASES.values() for word in case)
    # What `held` holds are the zeros of the run that it goes on from: tests/training/test_from_run.py.
    own = ("pdp", "held")
    missing = [name for name in OPTIONS if name not in own and f"method={name} " not in f"{words} "]
    assert not missing
