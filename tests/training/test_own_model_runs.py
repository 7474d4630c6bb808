"""A model of the user's own in everything that a run does: teacher, loaders, evaluation, exports, sweeps."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from installed import ROOT
from safetensors.torch import load_file

from pdp.config.command import command_of
from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.runs.record import read_record

pytestmark = pytest.mark.slow
SHORT = ["data.limit=64", "recipe.epochs=2", "recipe.lr_warmup=0", "recipe.batch_size=32"]
RAMP = ["schedule.warmup=0", "schedule.ramp=1ep"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("working directory")
    shutil.copytree(ROOT / "examples" / "own_model" / "mypackage", folder / "mypackage")
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield place
    for name in [one for one in sys.modules if one.split(".")[0] == "mypackage"]:
        del sys.modules[name]


def run(*words):
    before = set(Path().glob("results/runs/*/seed*"))
    assert main("train", list(words)) == 0
    (made,) = set(Path().glob("results/runs/*/seed*")) - before
    return made


def test_taught_measured_exported_and_gone_on_from(here, capsys):
    dense = run("model=mypackage.models.MyNet", "prune=none", *SHORT)
    words = ["model=mypackage.models.narrow", "prune=channel", "sparsity=0.5", "distill=teacher", "data.workers=1"]
    made = run(*words, f"distill.teacher={dense}", *SHORT, *RAMP)
    record = read_record(made)
    assert record.model == "mypackage.models.narrow" and len(record.model_source) == 64
    assert record.distillation and read_record(dense).model_source == record.model_source
    assert main("evaluate", [f"run={made}"]) == 0 and "agrees with the record" in capsys.readouterr().out
    script = [sys.executable, str(ROOT / "scripts" / "export.py"), f"run={made}", "format=slim", "output=slim"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(here))
    from mypackage.models import narrow

    from pdp.export.slim_loader import load_slim

    slim, whole = load_slim(narrow(10), Path("slim")).eval(), narrow(10)
    whole.load_state_dict(load_file(made / "model.safetensors"))
    images = torch.randn(3, 3, 8, 8)
    assert torch.allclose(slim(images), whole.eval()(images), atol=1e-5)
    assert sum(one.numel() for one in slim.parameters()) == record.params_nonzero
    held = run(f"from={made}", "data.limit=64", *SHORT[1:])
    assert read_record(held).params_nonzero == record.params_nonzero


def test_an_edited_model_is_another_run_and_a_measured_one_says_so(here):
    words = ["model=mypackage.models.narrow", "sparsity=0.5", *SHORT, *RAMP]
    made, file = run(*words), here / "mypackage" / "models.py"
    text = file.read_text()
    file.write_text(text.replace("width=8", "width=12"))
    try:
        assert run(*words) != made
        file.write_text(text + "# a comment\n")
        with pytest.warns(UserWarning, match="source of mypackage.models.narrow is not what it was"):
            assert main("evaluate", [f"run={made}"]) == 0
    finally:
        file.write_text(text)


@pytest.mark.parametrize("more", [[], ["hydra/launcher=basic"]], ids=["by itself", "handed over"])
def test_a_sweep_over_own_models(here, capfd, more):
    words = ["model=mypackage.models.narrow,mypackage.models:MyNet", "sparsity=0.5", f"seed={3 + len(more)}", *RAMP]
    before = set(Path().glob("results/runs/*/seed*"))
    assert main("train", ["-m", *words, *SHORT, *more]) == 0
    made = set(Path().glob("results/runs/*/seed*")) - before
    assert {read_record(one).model for one in made} == {"mypackage.models.narrow", "mypackage.models.MyNet"}


def test_the_command_that_makes_it_is_short():
    config = compose(["model=mypackage.models.MyNet", "model.arguments.width=8", "sparsity=0.5"])
    command = command_of(config)
    assert command.startswith("python train.py model=mypackage.models.MyNet data=digits method=pdp")
    assert "model.name" not in command and "model.arguments={width: 8}" in command.replace("'", "")
