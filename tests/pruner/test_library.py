"""The library alone, installed from a wheel with only torch, numpy and pandas: the example's loop."""

import re

import pytest
from installed import ROOT, make_site, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder to import from that holds the wheel, torch, numpy, pandas and what these need."""
    return make_site(tmp_path_factory.mktemp("wheel"), ("torch", "numpy", "pandas"))


def test_the_example_runs_from_a_wheel_in_a_bare_environment(bare):
    done = run(bare, str(ROOT / "examples" / "own_loop.py"))
    assert done.returncode == 0, done.stderr
    accuracy, sparsity = re.search(r"accuracy ([\d.]+)% at ([\d.]+)% sparsity", done.stdout).groups()
    assert float(sparsity) == 90.0
    assert float(accuracy) > 85  # of three kinds of images


def test_the_bare_environment_is_bare(bare):
    for name in ("hydra", "timm", "torchvision", "accelerate", "rich", "sklearn"):
        assert run(bare, "-c", f"import {name}").returncode != 0


def test_importing_pdp_and_its_options_needs_no_torch(bare):
    code = (
        "import sys, pdp, pdp.schedule.time, pdp.errors, pdp.methods.options; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert run(bare, "-c", code).returncode == 0
