"""Options that a pruner's keywords name: a wrong one, or one that would change nothing, is refused by its name."""

import warnings

import numpy as np
import pytest
from small_models import small_net

from pdp import Pruner
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS, PdpOptions
from pdp.patterns import make_pattern
from pdp.quantize.options import Int8Options


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kapa": 1}, r"method=pdp has no option kapa: did you mean kappa or"),
        ({"round_to": 8}, r"method=pdp has no option round_to: give it in pattern_options"),
        ({"name": "gmp"}, r"method=pdp has no option name"),
        ({"method": PdpOptions(), "kappa": 0.2}, r"kappa would change nothing beside PdpOptions\(...\)"),
        ({"pattern": "channel", "pattern_options": {"roundto": 8}}, r"has no option roundto: did you mean round_to"),
        ({"pattern": make_pattern("random"), "pattern_options": {"n": 1}}, r"n would change nothing beside Pattern"),
        ({"pattern": "2:4", "pattern_options": {"n": 1}}, r'pattern_options={"n": 1} contradicts pattern 2:4'),
        ({"pattern": "4x1", "pattern_options": {"block": [8, 1]}}, r"\[8, 1\]} contradicts pattern 4x1"),
        ({"quantize": Int8Options(), "quantize_options": {"start": "1ep"}}, r"start would change nothing beside Int8"),
        ({"quantize_options": {"start": "1ep"}}, r'quantize="none" has no option start'),
    ],
)
def test_an_option_that_would_not_count_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        make(**values)


def make(**values):
    sparsity = None if values.get("pattern") == "2:4" else 0.5
    return Pruner(small_net(), **{"sparsity": sparsity, "epochs": 4, **values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sparsity": "0.5"}, "sparsity='0.5' is not a number or None"),
        ({"sparsity": True}, "sparsity=True is not a number"),
        ({"epochs": 2.5}, "epochs=2.5 is not a whole number"),
        ({"epochs": -1}, "epochs=-1 is out of range"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 is out of range"),
        ({"upper_bound": float("nan")}, "upper_bound=nan is out of range"),
        ({"exclude": "fc"}, r"exclude='fc' is no list of names or patterns: give exclude=\[\"fc\"\]"),
        ({"include": [1]}, r"include=\[1\] is no list"),
        ({"kappa": "0.2", "temperature_mode": "relative"}, "kappa='0.2' is not a number or None"),
        ({"refresh": 1.5}, "refresh=1.5 is not a whole number"),
        ({"pattern": "channel", "pattern_options": {"round_to": 8.0}}, "8.0.* is not a whole number"),
        ({"schedule": {"rmp": 0.2}}, "schedule has no option rmp: did you mean ramp"),
    ],
)
def test_a_value_of_another_kind_is_refused(values, words):
    with pytest.raises(Refusal, match=words):
        make(**values)


def test_numbers_of_numpy_are_numbers():
    assert make(sparsity=np.float32(0.5), epochs=np.int64(4), temperature=np.float64(1e-3)).target == 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"anneal_share": 0.5}, "anneal_share=0.5 has no effect with anneal=none"),
        ({"budget": "moving", "allocation": "uniform"}, "budget=moving has no effect with allocation=uniform"),
        ({"method": "movement", "threshold": 0.2}, "threshold=0.2 has no effect with variant=hard"),
        ({"allocation_path": "budget.csv"}, "allocation_path=budget.csv has no meaning for allocation=global"),
        ({"allocation": "file", "allocation_path": "x", "least_density": 0.3}, "least_density has no meaning with"),
        ({"method": "wanda", "allocation": "global"}, "allocation=global has no meaning for method=wanda"),
    ],
)
def test_what_has_no_effect_is_refused_as_on_the_command_line(values, words):
    with pytest.raises(Refusal, match=words):
        make(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "acdc", "schedule": {"warmup": "1ep"}}, r'schedule={"warmup": "1ep"} has no effect with'),
        ({"method": "str", "allocation": "uniform"}, "allocation=uniform has no meaning for method=str"),
        ({"kappa": 0.3}, 'kappa=0.3 has no effect with pattern="random", whose temperature is absolute'),
        ({"method": PdpOptions(kappa=0.3)}, 'kappa=0.3 has no effect with pattern="random"'),
        ({"pattern": "4x1", "temperature": 1e-4}, 'temperature has no effect with pattern="block", whose'),
        ({"temperature_mode": "relative", "temperature": 1e-3}, "temperature has no effect with temperature_mode=rel"),
        ({"pattern": "2:4", "least_density": 0.3}, 'least_density has no meaning for pattern="nm"'),
    ],
)
def test_what_is_often_the_same_for_several_methods_is_a_warning(values, words):
    with pytest.warns(UserWarning, match=words) as caught:
        make(**values)
    assert caught[0].filename == __file__  # the line that makes the pruner
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(
            **{
                key: values[key]
                for key in values
                if key == "pattern" or key == "method" and str(values[key]) in OPTIONS
            }
        )


@pytest.mark.parametrize(("pattern", "same"), [("2:4", {"n": 2, "m": 4}), ("4x1", {"block": (4, 1)})])
def test_an_option_that_says_what_the_pattern_says_is_taken(pattern, same):
    assert make_pattern(pattern, **same).label == make_pattern(pattern).label
