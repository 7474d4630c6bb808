"""train.py and evaluate.py as commands: help, refusals without torch, sweeps, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdp.config.command_line import main
from pdp.config.groups import GROUPS, choices
from pdp.errors import Refusal, SavedForRestart, Stopped

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = """
import sys
sys.path.insert(0, sys.argv[1])
from pdp.config.command_line import main
code = main(sys.argv[2], sys.argv[3:])
assert "torch" not in sys.modules and "numpy" not in sys.modules, "imported too early"
raise SystemExit(code)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_help_lists_groups_without_torch(program, tmp_path):
    result = run("-c", WITHOUT_TORCH, str(ROOT), program, "--help")
    assert result.returncode == 0 and result.stderr == ""
    for group in GROUPS if program == "train" else ("model", "data"):
        assert f"\n  {group} " in result.stdout
        for choice in choices(group) if group != "experiment" else ():
            assert choice in result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 110 and len(lines) <= 52  # one screen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "overrides", "words"),
    [
        ("train", ["model=resnet18", "sparsity=86.6"], ["0.866"]),
        ("train", ["model=resnet51", "sparsity=0.5"], ["resnet50"]),
        ("train", ["model=resnet18", "sparsity=abc"], ["sparsity=abc"]),
        ("train", ["model=resnet18", "sparsity=0.5", "data=imagenet"], ["data.root"]),
        ("evaluate", ["run=nowhere"], ["run=nowhere"]),
    ],
)
def test_refusals_without_torch(program, overrides, words, tmp_path):
    result = run("-c", WITHOUT_TORCH, str(ROOT), program, *overrides)
    assert result.returncode == 2, result.stderr
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words)
    assert list(tmp_path.iterdir()) == []


def test_scripts_work_from_anywhere():
    for script in ("train.py", "evaluate.py"):
        result = run(str(ROOT / script), "modle=resnet18")
        assert result.returncode == 2 and "did you mean model?" in result.stderr


@pytest.fixture
def entered(monkeypatch):
    """Puts a stand-in for `pdp.training.run` and `pdp.training.measurement`, so that what reaches it can be seen and how it ends be chosen."""
    reached: list = []

    class Run:
        ending: BaseException | None = None

        def train(self, config, lm_eval=None):
            reached.append(config)
            if self.ending and config.seed == 1:
                raise self.ending

        evaluate = train

        def evaluate_run(self, path, overrides, lm_eval=None):
            reached.append((path, overrides))

    stand_in = Run()
    stand_in.reached = reached
    monkeypatch.setitem(sys.modules, "pdp.training.run", stand_in)
    monkeypatch.setitem(sys.modules, "pdp.training.measurement", stand_in)
    return stand_in


def test_every_cell_of_a_sweep_is_composed_by_itself(entered):
    code = main("train", ["-m", "model=resnet18", "data=digits,cifar10", "method=pdp,gmp", "sparsity=0.5"])
    assert code == 0
    seen = [(one.data.name, one.recipe.name, one.method.name, one.schedule.name) for one in entered.reached]
    assert seen == [
        ("digits", "digits", "pdp", "linear"),
        ("digits", "digits", "gmp", "cubic"),
        ("cifar10", "small_images", "pdp", "linear"),
        ("cifar10", "small_images", "gmp", "cubic"),
    ]


def test_sweeps_know_ranges_and_imagenet_by_cell(entered, monkeypatch):
    monkeypatch.setenv("IMAGENET_DIR", "/imagenet")
    code = main("train", ["--multirun", "model=glob(resnet?8)", "experiment=null,digits/mobilenet_v1_random_866"])
    assert code == 2  # no sparsity where there is no experiment
    assert [one.data.name for one in entered.reached] == ["digits"]
    entered.reached.clear()
    assert main("train", ["-m", "model=resnet18", "seed=range(0,3)", "sparsity=0.5"]) == 0
    assert [(one.seed, one.data.name, one.data.root) for one in entered.reached] == [
        (seed, "imagenet", "/imagenet") for seed in range(3)
    ]


def test_a_refused_cell_refuses_only_itself(entered, capsys):
    code = main("train", ["-m", "model=resnet18,resnet51", "sparsity=0.5,abc,86.6", "seed=0"])
    assert code == 2 and [one.sparsity for one in entered.reached] == [0.5]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6 and "Traceback" not in "".join(lines)
    assert "sparsity=abc" in lines[1] and "did you mean 0.866" in lines[2] and "no such model" in lines[3]


def test_an_explicit_launcher_gets_the_sweep(entered, tmp_path):
    code = main("train", ["-m", "model=resnet18", "sparsity=0.5,0.6,2", "data=cifar10", "hydra/launcher=basic"])
    assert code == 2
    assert [(one.sparsity, one.data.name) for one in entered.reached] == [(0.5, "cifar10"), (0.6, "cifar10")]
    assert (tmp_path / "results/runs/.sweeps").is_dir()


@pytest.mark.parametrize(
    ("ending", "code", "reached"),
    [
        (Refusal("no"), 2, 3),
        (Stopped("full disk"), 3, 3),
        (ZeroDivisionError(), 1, 3),
        (SavedForRestart("saved"), 75, 2),  # whoever asked the process to stop wants no further cell
        (KeyboardInterrupt(), 130, 2),
    ],
)
def test_exit_codes(entered, capsys, ending, code, reached):
    entered.ending = ending
    assert main("train", ["model=resnet18", "sparsity=0.5", "seed=1"]) == code
    error = capsys.readouterr().err
    assert ("Traceback" in error) == (code == 1)
    entered.reached.clear()
    assert main("train", ["-m", "model=resnet18", "sparsity=0.5", "seed=0,1,2"]) == code
    assert len(entered.reached) == reached


def test_evaluate_a_run(entered, tmp_path, capsys):
    finished = tmp_path / "run" / "seed0"
    finished.mkdir(parents=True)
    assert main("evaluate", [f"run={finished}"]) == 2
    for name in ("config.yaml", "model.safetensors"):
        (finished / name).write_text("x", encoding="utf-8")
    assert main("evaluate", [f"run={finished}", "recipe.batch_size=16", "device=cpu", "data.root=/x"]) == 0
    assert entered.reached == [(finished, {"recipe.batch_size": 16, "device": "cpu", "data.root": "/x"})]
    capsys.readouterr()
    for wrong in (
        "recipe.batch_size=0",
        "recipe.batch_size=x",
        "device=tpu",
        "data.workers=-1",
        "model=resnet18",
        "run=",
    ):
        assert main("evaluate", [f"run={finished}", wrong]) == 2, wrong
        assert wrong.split("=")[0] in capsys.readouterr().err
    assert main("evaluate", [f"run={tmp_path / 'run'}"]) == 2
    assert "seed0" in capsys.readouterr().err


def test_evaluate_a_model(entered, capsys):
    assert main("evaluate", ["model=mobilenet_v2", "data=digits", "recipe.batch_size=64"]) == 0
    (config,) = entered.reached
    assert config.method.name == "dense" and config.sparsity is None and config.recipe.batch_size == 64
    assert main("evaluate", ["model=mobilenet_v2", "sparsity=0.5"]) == 2
    assert "sparsity=0.5" in capsys.readouterr().err


def test_hydras_own_questions_still_work(entered, capsys):
    assert main("train", ["--cfg", "job", "model=resnet18", "data=cifar10"]) == 0
    assert "name: small_images" in capsys.readouterr().out
    assert main("train", ["--info", "defaults", "model=resnet18"]) == 0
    assert "model/resnet18" in capsys.readouterr().out
    assert main("train", ["--cfg", "job", "model=resnet51"]) == 2
    assert "did you mean resnet50" in capsys.readouterr().err
    assert entered.reached == []


@pytest.mark.parametrize("flag", ["--run-it", "-x", "--config-dir"])
def test_unknown_flags_are_refused(flag, capsys):
    assert main("train", [flag, "model=resnet18"]) == 2
    assert flag in capsys.readouterr().err
