"""A process of a run inside a job is asked to stop: at any moment it leaves with the code of a run to start again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
import os, signal
{when}os.kill(os.getpid(), signal.{request})
from torch import nn
def make(num_classes):
    os.kill(os.getpid(), signal.{request})
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""


@pytest.mark.kills
@pytest.mark.parametrize(("request_", "when"), [("SIGUSR1", ""), ("SIGTERM", "# ")])
def test_a_request_while_the_users_model_is_imported_or_made_is_no_failure_of_the_model(tmp_path, request_, when):
    (tmp_path / "asked.py").write_text(MODULE.format(request=request_, when=when))
    (tmp_path / "codes").mkdir()
    words = [
        "model=asked.make",
        "data=digits",
        "prune=none",
        "debug=smoke",
        f"output_dir={tmp_path}/runs",
        "device=cpu",
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pdp.cluster.rank", str(tmp_path / "codes"), *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75, done.stderr
    assert done.stderr.splitlines()[-1] == f"train: {request_}: the same command goes on from the last checkpoint"
    assert [one.read_text().strip() for one in (tmp_path / "codes").iterdir()] == ["75"]
