"""The library alone: the example's loop, from a wheel, beside torch, numpy and pandas and nothing else."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def requirements(name: str, found: set[str]) -> set[str]:
    """The installed distributions that `name` cannot do without, itself included."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return found  # a requirement of another platform
    if distribution.name in found:
        return found
    found.add(distribution.name)
    for line in distribution.requires or []:
        if "extra ==" not in line:
            requirements(re.match(r"[\w.-]+", line)[0], found)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder to import from that holds the wheel, torch, numpy, pandas and what these need."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    shutil.copytree(ROOT / "pdp", source / "pdp", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(work),
        str(source),
    ]
    subprocess.run(build, check=True)
    (wheel,) = work.glob("*.whl")
    site = work / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    for name in sorted({one for root in ("torch", "numpy", "pandas") for one in requirements(root, set())}):
        for file in importlib.metadata.distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / top)
    return site


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    # -S keeps this environment's own packages out.
    return subprocess.run(
        [sys.executable, "-S", "-P", *arguments], env=environment, cwd=site, capture_output=True, text=True, timeout=300
    )


def test_the_example_runs_from_a_wheel_in_a_bare_environment(bare):
    done = run(bare, str(ROOT / "scripts" / "library_example.py"))
    assert done.returncode == 0, done.stderr
    accuracy, sparsity = re.search(r"accuracy ([\d.]+)% at ([\d.]+)% sparsity", done.stdout).groups()
    assert float(sparsity) == 90.0
    assert float(accuracy) > 85  # three classes


def test_the_bare_environment_is_bare(bare):
    for name in ("hydra", "timm", "torchvision", "accelerate", "rich", "sklearn"):
        assert run(bare, "-c", f"import {name}").returncode != 0


def test_importing_pdp_and_its_options_needs_no_torch(bare):
    code = (
        "import sys, pdp, pdp.schedule.time, pdp.errors, pdp.methods.options; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert run(bare, "-c", code).returncode == 0
