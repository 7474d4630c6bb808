"""A Slurm of its own for each file of tests that asks for one."""

import os
from pathlib import Path

import pytest
import small_slurm
from slurm_jobs import Releaser


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
