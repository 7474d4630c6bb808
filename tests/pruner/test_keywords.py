"""Options that a pruner's keywords name: a wrong one, or one that would change nothing, is refused by its name."""

import pytest
from small_models import small_net

from pdp import Pruner
from pdp.errors import Refusal
from pdp.methods.options import PdpOptions
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
    sparsity = None if values.get("pattern") == "2:4" else 0.5
    with pytest.raises(Refusal, match=words):
        Pruner(small_net(), **{"sparsity": sparsity, "epochs": 4, **values})


@pytest.mark.parametrize(("pattern", "same"), [("2:4", {"n": 2, "m": 4}), ("4x1", {"block": (4, 1)})])
def test_an_option_that_says_what_the_pattern_says_is_taken(pattern, same):
    assert make_pattern(pattern, **same).label == make_pattern(pattern).label
