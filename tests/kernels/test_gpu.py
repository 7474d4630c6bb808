"""The GPU's kernels: compiled on a GPU, elsewhere by Triton's interpreter, which needs a process started for it."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pdp.kernels.gpu import runs_on

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


def test_where_no_kernel_can_run_one_warning_says_so():
    runs_on.cache_clear()
    with pytest.warns(UserWarning, match="kernels do not run on cpu, pruning goes on without: "):
        assert not runs_on(torch.device("cpu"))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_equal_their_definitions():
    files = ["kernels/interpreted.py", "kernels/units_interpreted.py"]
    command = [sys.executable, "-m", "pytest", *files, "-n", "0", "-p", "no:cacheprovider"]
    environment = dict(os.environ) if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)
    print(done.stdout[-6000:], file=sys.stderr)
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_that_an_interpreter_runs_compile_for_a_gpu_too(tmp_path):
    """Triton's compiler needs no GPU, but a process that has not been told to interpret."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, str(TESTS / "kernels" / "compiled_for_hopper.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
