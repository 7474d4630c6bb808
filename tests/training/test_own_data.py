"""The user's own images and tables in training, evaluation, export, distillation and sweeps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdp.config.command_line import main
from pdp.runs.record import read_record
from pdp.training.export_run import ExportedRun, export

pytestmark = pytest.mark.slow

IMAGES = ["model=resnet20", "data=image_folder", "data.root=my photos", "data.image_size=16", "recipe.epochs=2"]
TEXTS = [
    "model=bert_tiny",
    "model.sizes={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}",
    *("data=table", "data.train=Bücher & mehr.csv", "data.text=[mein Text]", "recipe.epochs=2"),
]


def write_photos(root: Path, names=("Bäume", "katze")) -> None:
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(20):
            pixels = rng.integers(80 * number, 80 * number + 80, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")


def write_table(path: Path, names=("gut", "schlecht")) -> None:
    rows = "".join(f'"{names[k % 2]}, {k}",{names[k % 2]},{k / 7}\n' for k in range(40))
    path.write_text("mein Text,Urteil,Punkte\n" + rows, encoding="utf-8")


def the_run(*others: Path) -> Path:
    (run,) = set(Path("results/runs").glob("*/seed0")) - set(others)
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with photos and a dense run on them."""
    folder = tmp_path_factory.mktemp("eigene Bilder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_photos(folder / "my photos")
        assert main("train", [*IMAGES, "prune=none"]) == 0
    return folder


def test_a_run_on_own_images_is_measured_exported_taught_and_swept(photos, monkeypatch, capfd):
    monkeypatch.chdir(photos)
    dense = the_run()
    record = read_record(dense)
    assert record.classes == ["Bäume", "katze"] and record.recipe["name"] == "own_images"
    assert any("held out as the test set" in note for note in record.notes)
    assert main("evaluate", [f"run={dense}"]) == 0
    assert "agrees with the record" in capfd.readouterr().out
    shutil.copytree("my photos", "moved")
    assert main("train", [*IMAGES, "prune=none", "data.root=moved"]) == 0  # the same run, wherever its images lie
    assert "this run is finished" in capfd.readouterr().out and the_run() == dense
    words = [*IMAGES, "-m", "sparsity=0.5", "distill=teacher", "method=pdp,gmp"]
    assert main("train", words) == 0
    runs = [read_record(path) for path in Path("results/runs").glob("*/seed0")]
    assert sorted(one.method for one in runs) == ["dense", "gmp", "pdp"]
    assert {one.data_fingerprint for one in runs} == {record.data_fingerprint}
    shutil.copytree("my photos", "renamed")
    Path("renamed/katze").rename("renamed/zebra")
    assert main("train", [*IMAGES, "prune=none", "data.root=renamed"]) == 0
    assert "its classes were called Bäume, katze then" in capfd.readouterr().out
    assert export(ExportedRun(dense), "safetensors", photos / "exported") and (photos / "exported").is_dir()
    Path("my photos").rename("away")  # the classes are the record's where the images are gone
    run = ExportedRun(dense)
    assert run.model(run.inputs).shape[1] == 2
    Path("away").rename("my photos")


def test_measuring_on_other_classes_is_refused(photos, monkeypatch, capfd):
    monkeypatch.chdir(photos)
    dense = min(Path("results/runs").glob("*dense*/seed0"))
    for names, words in (
        (("Bäume", "vogel"), "it lacks katze; it has besides vogel"),
        (("Bäume", "katze", "z"), "it has besides z"),
    ):
        shutil.rmtree("others", ignore_errors=True)
        write_photos(Path("others"), names)
        capfd.readouterr()
        assert main("evaluate", [f"run={dense}", "data.root=others"]) == 2
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert words in line and "trained for 2 classes" in line
    shutil.rmtree("others")
    write_photos(Path("others"), ("vogel", "hund"))
    line = [*IMAGES, "data.root=others", "sparsity=0.5", "distill=teacher", f"distill.teacher={dense}"]
    assert main("train", line) == 2
    assert "was trained for other classes" in capfd.readouterr().err


def test_a_run_on_an_own_table_is_measured_and_exported(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "Bücher & mehr.csv")
    assert main("train", [*TEXTS, "data.label=Urteil", "sparsity=0.5"]) == 0
    run = the_run()
    record = read_record(run)
    assert record.classes == ["gut", "schlecht"] and record.metric_name == "accuracy" and record.data == "table"
    assert main("evaluate", [f"run={run}"]) == 0
    assert "agrees with the record" in capfd.readouterr().out
    write_table(tmp_path / "other.csv")
    Path("moved.csv").write_bytes(Path("Bücher & mehr.csv").read_bytes())
    Path("Bücher & mehr.csv").unlink()
    assert main("evaluate", [f"run={run}"]) == 2
    assert "data.train=" in capfd.readouterr().err
    assert main("evaluate", [f"run={run}", "data.train=moved.csv"]) == 0
    assert "agrees with the record" in capfd.readouterr().out
    with pytest.warns(UserWarning, match="the data is not the run's"):
        assert main("evaluate", [f"run={run}", "data.train=moved.csv", "data.test=other.csv"]) == 0
    write_table(tmp_path / "other.csv", ("gut", "mäßig"))
    assert main("evaluate", [f"run={run}", "data.train=other.csv"]) == 2
    assert "it lacks schlecht; it has besides mäßig" in capfd.readouterr().err
    Path("moved.csv").rename("Bücher & mehr.csv")
    export(ExportedRun(run), "safetensors", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "gut", "1": "schlecht"}


def test_a_score_is_learnt_and_its_scale_is_in_the_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "Bücher & mehr.csv")
    assert main("train", [*TEXTS, "data.score=Punkte", "sparsity=0.5"]) == 0
    record = read_record(the_run())
    assert record.metric_name == "pearson" and record.classes == []
    assert any("scores are learnt as (score - " in note for note in record.notes)
