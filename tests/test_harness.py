"""pdp.run, pdp.compose and pdp.sweep: the command line's arguments from Python, its refusals as exceptions."""

import sys
from pathlib import Path

import numpy as np
import pytest

import pdp
from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.runs.record import Record, read_record

pytestmark = pytest.mark.slow

SHORT = ["model=resnet20", "data.limit=64", "recipe.epochs=2", "recipe.lr_warmup=0", "recipe.batch_size=32"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_words_come_as_a_list_a_text_a_mapping_or_keywords():
    words = ["model=resnet20", "sparsity=0.9", "recipe.lr=0.01", "prune.exclude=[fc]", "data.root=null", "seed=3"]
    wanted = compose(words)
    assert pdp.compose(words) == wanted == pdp.compose(tuple(words)) == pdp.compose(" ".join(words))
    values = {"model": "resnet20", "recipe.lr": np.float64(0.01), "prune.exclude": ["fc"], "data.root": None}
    assert pdp.compose(values, sparsity=0.9, seed=np.int64(3)) == wanted
    strange = "a folder, with 'signs' and größe"
    assert pdp.compose("model=resnet20", sparsity=0.5, output_dir=Path(strange)).output_dir == strange
    assert pdp.compose({"model": "some.module.Net", "sparsity": 0.5}).model.name == "some.module.Net"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=resnet2"], "did you mean resnet20"),
        (["model=resnet20", "sparsity=86.6"], "did you mean 0.866"),
        (["model=resnet20"], "sparsity must be given"),
        (["model=resnet20", "sparsity"], "'sparsity' is not an override"),
        (["model=resnet20", 3], "3 is not an override"),
        (["model=resnet20", "sparsity=0.8,0.9"], "names several values"),
        (["model=resnet20", "sparsity=0.8", "dry_run=true"], "leaves no record"),
        (["model=nowhere.Net", "sparsity=0.8"], "no module nowhere"),
        (["model=resnet20", "sparsity=0.8", "data=image_folder", "data.root=nowhere"], "nowhere"),
    ],
)
def test_what_is_refused_is_raised_and_nothing_is_written(words, said):
    with pytest.raises(pdp.Refusal, match=said):
        pdp.run(words)
    assert not Path("results").exists()


def test_a_run_is_the_command_lines_and_returns_its_record(capsys):
    record = pdp.run([*SHORT, "sparsity=0.9"], quiet=True)
    assert capsys.readouterr().out == ""
    assert isinstance(record, Record) and record.directory.is_relative_to("results/runs")
    assert read_record(record.directory) == record and abs(record.sparsity - 0.9) < 1e-3
    assert main("train", [*SHORT, "sparsity=0.9"]) == 0
    assert "this run is finished" in capsys.readouterr().out
    again = pdp.run(SHORT, sparsity=0.9)  # at once, and told
    assert again == record and "this run is finished" in capsys.readouterr().out
    assert len(list(Path("results/runs").glob("*/seed*"))) == 1


def test_a_sweep_is_a_frame_with_a_row_for_every_combination():
    words = [*SHORT, "method=gmp,sfp"]
    frame = pdp.sweep(words, {"recipe.lr": [0.02, 0.05], "data.validation": 0.2}, sparsity=(0.5,), seed=range(1))
    assert list(frame.method) == ["gmp", "gmp", "sfp", "sfp"]
    assert list(frame["recipe.lr"]) == [0.02, 0.05, 0.02, 0.05] and set(frame["data.validation"]) == {0.2}
    assert list(frame.status) == ["finished", "finished", "refused", "refused"]
    assert frame.error[2].startswith("method=sfp does not know prune=random")
    for row in frame.itertuples():
        if row.status == "finished":
            record = read_record(Path(row.directory))
            assert (record.metric, record.params_nonzero) == (row.metric, row.params_nonzero)
    with pytest.raises(pdp.Refusal, match="did you mean 0.866"):
        pdp.sweep(SHORT, sparsity=[86.6, 90])


def test_what_is_found_lazily_is_told(monkeypatch):
    assert {"run", "sweep", "compose"} <= set(dir(pdp)) and {"run", "sweep", "compose"} <= set(pdp.__all__)
    monkeypatch.setitem(sys.modules, "hydra", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pdp-pruning\[harness\]"):
        pdp.run(SHORT)
