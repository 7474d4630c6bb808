"""Installs the wheel, built from this checkout, beside chosen distributions and nothing else."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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


def make_site(work: Path, names: tuple[str, ...]) -> Path:
    """A folder to import from that holds the wheel, the distributions of these names, and what they need."""
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
    for name in sorted({one for root in names for one in requirements(root, set())}):
        for file in importlib.metadata.distribution(name).files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(file.locate()).parents[len(file.parts) - 1] / top)
    return site


def run(site: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Python with these arguments, which finds nothing but what lies in `site`."""
    environment = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    # -S keeps this environment's own packages out.
    return subprocess.run(
        [sys.executable, "-S", "-P", *arguments],
        env=environment,
        cwd=cwd or site,
        capture_output=True,
        text=True,
        timeout=300,
    )
