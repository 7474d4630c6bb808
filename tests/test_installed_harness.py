"""The harness from an installed wheel, in the user's own folder: conf/ is included, and pdp.run works."""

import json
import tomllib

import pytest
from installed import ROOT, make_site, run

pytestmark = pytest.mark.slow
NET = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
SCRIPT = """
import json, sys
import pdp
assert pdp.__file__.startswith({site!r}), pdp.__file__
assert "torch" not in sys.modules
words = ["model=mynet.net", "sparsity=0.5", "data.limit=64", "recipe.epochs=3"]
config = pdp.compose(words)
assert "torch" not in sys.modules
record = pdp.run(words, quiet=True)
frame = pdp.sweep(words[:1] + words[2:], sparsity=[0.5, 86.6])
print(json.dumps([str(record.directory), record.sparsity, record.git_commit, list(frame.status), frame.error[1]]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["harness"]]
    return make_site(tmp_path_factory.mktemp("harness"), tuple(one.split(">")[0] for one in needed))


def test_every_file_of_conf_is_in_the_wheel(site):
    def files(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(site / "pdp" / "conf") == files(ROOT / "conf")


def test_a_run_from_python_in_a_clean_environment(site, tmp_path):
    (tmp_path / "mynet.py").write_text(NET)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(site=str(site)))
    done = run(site, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    directory, sparsity, commit, status, error = json.loads(done.stdout.splitlines()[-1])
    assert abs(sparsity - 0.5) < 0.01 and commit is None and (tmp_path / directory / "record.json").is_file()
    assert status == ["finished", "refused"] and "did you mean 0.866" in error
