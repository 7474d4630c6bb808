"""Errors that only the data, the model or a file can show: one line, the right exit code, nothing half-written."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pdp.config.command_line import main
from pdp.config.schema import ModelConfig
from pdp.tasks.image_models import build_model


def write_images(folder: Path, classes: list[str], count: int = 4) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 40), (40 * number, 10 * index, 90)).save(folder / name / f"{index}.png")


class MakesAFolder:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """A folder full of things that do not fit."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "uneven" / "train", ["cat", "dog", "owl"])
    write_images(tmp_path / "uneven" / "val", ["cat", "dog"])
    state = build_model(ModelConfig(name="resnet20", task="images"), 10)[0].state_dict()
    save_file(state, "whole.safetensors")
    Path("truncated.safetensors").write_bytes(Path("whole.safetensors").read_bytes()[:5000])
    torch.save(state, "truncated.pth")
    Path("truncated.pth").write_bytes(Path("truncated.pth").read_bytes()[:5000])
    torch.save({"conv1.weight": MakesAFolder(tmp_path / "ran")}, "code.pth")
    Path("budget.csv").write_text("layer,share\nconv1,0.5\nlayer1.0.conv7,0.5\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=imagenet", "data.root=nowhere"], ["data.root", "nowhere"]),
        (["data=image_folder", "data.root=empty"], ["data.root", "empty"]),
        (["data=image_folder", "data.root=uneven"], ["owl"]),
        (["data=fashion_mnist", "data.root=empty"], ["data.root"]),
        (["model.pretrained=nowhere.pth"], ["nowhere.pth"]),
        (["model.pretrained=truncated.safetensors"], ["truncated.safetensors"]),
        (["model.pretrained=truncated.pth"], ["truncated.pth"]),
        (["model.pretrained=code.pth"], ["code.pth"]),
        (["model=resnet18", "model.pretrained=whole.safetensors"], ["whole.safetensors"]),
        (["model=timm", "model.name=resnet51"], ["resnet51", "resnet50"]),
        (["model.arguments.depth=7"], ["depth"]),
        (["prune.exclude=[layer9.*]"], ["prune.exclude", "layer9.*"]),
        (["prune.exclude=[*]"], ["prune.exclude"]),
        (["allocation=file", "allocation.path=budget.csv"], ["layer1.0.conv7", "did you mean layer1.0.conv"]),
        (["sparsity=0.99999"], ["sparsity"]),
        (["schedule.warmup=3000it", "recipe.epochs=8"], ["schedule.warmup", "recipe.epochs"]),
        (
            ["device=cuda"] if not torch.cuda.is_available() else ["sparsity=2"],
            ["device" if not torch.cuda.is_available() else "sparsity"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused_in_one_line_before_anything_is_written(bad, capsys, arguments, words):
    sparsity = [] if "allocation=file" in arguments else ["sparsity=0.5"]
    code = main("train", ["model=resnet20", *sparsity, *arguments, "output_dir=out"])
    error = capsys.readouterr().err
    assert code == 2, error
    (line,) = error.strip().splitlines()
    assert all(word in line for word in words), line
    assert not (bad / "out").exists()
    assert not (bad / "ran").exists()


def test_an_unreadable_image_is_refused_or_stops_the_run_or_is_left_out_and_counted(tmp_path, capsys, monkeypatch):
    for part in ("train", "val"):
        write_images(tmp_path / "data" / part, ["cat", "dog"], 24)
    broken = tmp_path / "data" / "val" / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:20])
    command = [
        "model=resnet20",
        "sparsity=0.5",
        "data=image_folder",
        f"data.root={tmp_path / 'data'}",
        "debug=smoke",
        "data.workers=0",
    ]
    for code in (2, 3):
        assert main("train", [*command, f"output_dir={tmp_path / 'one'}"]) == code
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "3.png" in line and "data.unreadable" in line
        # Of a set too large to be looked through first, it is met in work.
        monkeypatch.setattr("pdp.tasks.image_parts._WHOLE", 0)
        monkeypatch.setattr("pdp.tasks.image_parts._SEEN", {})
    monkeypatch.undo()
    assert main("train", [*command, f"output_dir={tmp_path / 'two'}", "data.unreadable=skip"]) == 0
    out = capsys.readouterr().out
    assert "unreadable: 1 images" in out and "3.png" in out
