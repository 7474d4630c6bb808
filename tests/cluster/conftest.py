"""A Slurm of its own for each file of tests that asks for one, and ranks that start quickly in its jobs."""

import os
from pathlib import Path

import pytest
import small_slurm
from slurm_jobs import Releaser
from warm_ranks import WarmRanks


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of our own; skipped, with the reason, where there can be none."""
    reason = small_slurm.unavailable()
    if reason:
        pytest.skip(f"no Slurm here: {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small_slurm.environment(folder).items():
            patch.setenv(name, value)
        tests = str(Path(__file__).resolve().parents[1])  # jobs open the tests' own model
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]))
        releaser = Releaser()
        try:
            small_slurm.start(folder)
            releaser.start()
            yield folder
        finally:
            releaser.ended.set()
            small_slurm.stop(folder)


@pytest.fixture(scope="module")
def warm(slurm, tmp_path_factory):
    """A context in which sweeps are submitted whose ranks need not import anything."""
    ranks = WarmRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks.warm
    ranks.close()
