"""The user's own images: every layout and file type, what is held out, and what is refused in one line."""

import io
import os
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from making import write_folder
from PIL import Image

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.errors import Refusal
from pdp.tasks import build_task, image_parts
from pdp.tasks.sampling import keeping_split, set_epoch


def a_png():
    file = io.BytesIO()
    Image.new("L", (12, 8)).save(file, "PNG")
    return file.getvalue()


def opened(root, *words):
    task = build_task(
        compose(
            ["model=resnet20", "data=image_folder", f"data.root={root}", "data.image_size=16", "sparsity=0.5", *words]
        )
    )
    task.open_data()
    return task


# ------------------------------------------------------------------------------------------------------------ layouts


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same images as folders, parquet shards and tars, and tars whose labels are names or folders."""
    root = tmp_path_factory.mktemp("Bilder und mehr")
    write_folder(root / "folders", {"train": {"Hündin": 5, "cat": 7}, "val": {"Hündin": 2, "cat": 3}}, kind="jpg")
    classes = sorted(["Hündin", "cat"])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    for place in ("parquet/data", "tars", "named", "nested"):
        (root / place).mkdir(parents=True)
    for part, called in (("train", "train"), ("val", "validation")):
        files = [
            (path, number)
            for number, name in enumerate(classes)
            for path in sorted((root / "folders" / part / name).iterdir())
        ]
        for shard in range(2):
            some = files[shard * len(files) // 2 : (shard + 1) * len(files) // 2]
            images = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in some]
            rows = {"image": images, "label": [number for _, number in some]}
            made = datasets.Dataset.from_dict(rows, features=features)
            made.to_parquet(root / f"parquet/data/{called}-{shard:05}-of-00002.parquet", batch_size=2)
            for place in ("tars", "named", "nested"):
                with tarfile.open(root / place / f"my-{called}-{shard:04}.tar", "w") as tar:
                    for position, (path, number) in enumerate(some):
                        key = f"{classes[number]}/{position:03}" if place == "nested" else f"{shard}{position:03}"
                        label = str(number) if place == "tars" else classes[number]
                        members = {f"{key}.jpg": path.read_bytes(), f"{key}.cls": label.encode()}
                        for name, content in list(members.items())[: 1 if place == "nested" else 2]:
                            member = tarfile.TarInfo(name)
                            member.size = len(content)
                            tar.addfile(member, io.BytesIO(content))
    return root


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", ["parquet", "tars", "named", "nested"])
def test_the_same_images_are_the_same_run_however_they_lie(layouts, place, workers):
    found = []
    for one in ("folders", place):
        task = opened(layouts / one)
        loader = task.train_loader(4, 0, "random_resized_crop", workers)
        set_epoch(loader, 1)
        batches = [*loader, *task.evaluation_loader("test", 2, workers)]
        found.append((task, torch.cat([batch["image"] for batch in batches]), [batch["label"] for batch in batches]))
    (folders, pixels, labels), (other, its_pixels, its_labels) = found
    assert folders.data_fingerprint == other.data_fingerprint and folders.sizes() == other.sizes()
    assert torch.equal(pixels, its_pixels) and all(map(torch.equal, labels, its_labels))
    assert other.class_names == (("0", "1") if place == "tars" else ("Hündin", "cat"))


def test_a_large_set_is_known_by_a_sample_wherever_it_lies(layouts, monkeypatch):
    monkeypatch.setattr(image_parts, "_WHOLE", 0)
    monkeypatch.setattr(image_parts, "_SAMPLED", 5)
    sampled = {opened(layouts / place).data_fingerprint for place in ("folders", "parquet", "tars")}
    assert len(sampled) == 1
    monkeypatch.undo()
    assert sampled != {opened(layouts / "folders").data_fingerprint}


def test_shards_are_read_where_they_are(layouts, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    list(opened(layouts / "parquet").train_loader(4, 0, "none", 0))
    assert not list(tmp_path.iterdir())


def test_a_folder_for_each_class_is_split_once_and_for_all(tmp_path):
    write_folder(tmp_path, {"": {"a\nb": 10, "größer als": 10, "one": 1}})
    (tmp_path / "notes").mkdir()
    (tmp_path / "one" / "deeper").mkdir()
    (tmp_path / "one" / "000.png").rename(tmp_path / "one" / "deeper" / "000.png")
    task = opened(tmp_path)
    assert task.class_names == ("a\nb", "größer als", "one")
    assert task.sizes() == {"train": 15, "validation": 2, "test": 4}
    assert "20 % of each class held out as the test set by a fixed split" in task.data_note
    assert "recipe=imagenet" in task.data_note and "\n" not in task.data_note
    labels = torch.cat([batch["label"] for batch in task.train_loader(15, 0, "none", 0)])
    assert torch.bincount(labels).min() == 1  # the only one of its class is learnt
    assert opened(tmp_path).data_fingerprint == task.data_fingerprint


def test_links_in_circles_are_followed_once(tmp_path):
    write_folder(tmp_path, {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}})
    os.symlink("..", tmp_path / "train" / "a" / "up")
    os.symlink("itself", tmp_path / "train" / "a" / "itself")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "train" / "b" / "000.png").rename(tmp_path / "elsewhere" / "x.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "train" / "b" / "linked")
    task = opened(tmp_path)
    assert (
        task.sizes()["train"] + task.sizes()["validation"] == 4 + 4 + 4
    )  # a holds its own, and through `up` b's and a's


def test_a_class_keeps_one_where_all_would_be_held_out():
    labels = np.array([0] * 9 + [1] + [2] * 2)
    for share in (0.1, 0.5, 0.9):
        kept, held = keeping_split(labels, share)
        assert set(labels[kept]) == {0, 1, 2} and sorted([*kept, *held]) == list(range(12))


def test_what_an_image_shows_counts_and_what_it_is_called_does_not(tmp_path):
    write_folder(tmp_path, {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 2}}, kind="bmp", side=12)
    first = opened(tmp_path).data_fingerprint
    (tmp_path / "train" / "a" / "000.bmp").rename(tmp_path / "train" / "a" / "0.bmp")
    assert opened(tmp_path).data_fingerprint == first
    one, other = (tmp_path / "train" / name / "003.bmp" for name in "ab")
    assert one.stat().st_size == other.stat().st_size
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    assert opened(tmp_path).data_fingerprint != first


# ----------------------------------------------------------------------------------------------------------- refusals


def write_parquet(path, rows, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def make_bad(root, name):
    """Makes one bad folder."""
    good = {"train": {"a": 3, "b": 3}, "val": {"a": 2, "b": 2}}
    if name in ("zero bytes", "cut off", "a text", "float rgb", "a dead link"):
        write_folder(root, good, kind="jpg")
        victim = root / "val" / "b" / "001.jpg"
        content = victim.read_bytes()
        victim.unlink()
        if name == "a dead link":
            os.symlink("nowhere", victim)
        else:
            victim.write_bytes({"zero bytes": b"", "cut off": content[: len(content) // 2]}.get(name, b"no image"))
    elif name == "one image":
        write_folder(root, {"": {"a": 1}})
    elif name == "one class":
        write_folder(root, {"train": {"a": 12}, "val": {"a": 2}})
    elif name == "a level too high":
        write_folder(root, {"photos": {"a": 3, "b": 9, "c": 9}})
    elif name == "no images":
        (root / "a").mkdir(parents=True)
        (root / "a" / "notes.txt").write_text("x")
    elif name == "flat":
        write_folder(root, {"train": {"": 4}})
    elif name == "files alone":
        write_folder(root, {"": {"": 4}})
    elif name == "train alone":
        write_folder(root, {"train": {"a": 3, "b": 3}})
    elif name == "other classes":
        write_folder(root, {"train": {"a": 3, "b": 3}, "test": {"a": 2, "c": 2}})
    elif name == "bad tar":
        root.mkdir()
        (root / "train-0.tar").write_bytes(b"no tar at all" * 100)
    elif name == "tar without labels":
        root.mkdir()
        with tarfile.open(root / "train-0.tar", "w") as tar:
            member = tarfile.TarInfo("0.jpg")
            tar.addfile(member, io.BytesIO(b""))
    elif name == "bad parquet":
        (root / "data").mkdir(parents=True)
        (root / "data" / "train-0.parquet").write_bytes(b"PAR1 no more")
    elif name == "parquet of texts":
        write_parquet(root / "data" / "train-0.parquet", {"text": ["a"], "label": [0]})
    elif name == "parquet without labels":
        write_parquet(root / "data" / "train-0.parquet", {"image": [{"bytes": b"x", "path": "a"}], "stars": [0]})
    elif name == "parquet with -1":
        image = {"bytes": a_png(), "path": "a"}
        write_parquet(root / "data" / "train-0.parquet", {"image": [image] * 3, "label": [0, 1, -1]})
    elif name == "parquet of paths":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        images = pa.array([{"bytes": None, "path": f"{k}.png"} for k in range(10)], type=kind)
        for part in ("train", "validation"):
            path = root / "data" / f"{part}-0.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"image": images, "label": pa.array([0, 1] * 5)}), path)


BAD = {
    "zero bytes": "val/b/001.jpg cannot be read it is empty data.unreadable=skip",
    "cut off": "val/b/001.jpg cannot be read data.unreadable=skip",
    "a text": "val/b/001.jpg cannot be read",
    "a dead link": "val/b/001.jpg cannot be read No such file",
    "one image": "1 image(s) too few data.root",
    "one class": "has one class, a two are needed data.root",
    "a level too high": "has one class, photos data.root",
    "no images": "a holds no image .jpg data.root",
    "flat": "train/ has no class folders data.root",
    "files alone": "nothing to test on data.root",
    "train alone": "nothing to test on data.root=photos/train",
    "other classes": "train/ has a class that test/ lacks (b) data.root",
    "bad tar": "train-0.tar cannot be read as a plain tar data.root",
    "tar without labels": "no label for 0.jpg .cls data.root",
    "bad parquet": "train-0.parquet cannot be read data.root",
    "parquet of texts": "no column of images it has text, label data.root",
    "parquet without labels": "no column of labels data.root",
    "parquet with -1": "1 images of train have no label data.root",
    "parquet of paths": "train-0.parquet row 0 cannot be read holds no bytes",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capfd, name):
    monkeypatch.chdir(tmp_path)
    make_bad(tmp_path / "photos", name)
    capfd.readouterr()
    code = main(
        "train", ["model=resnet20", "data=image_folder", "data.root=photos", "data.image_size=16", "sparsity=0.5"]
    )
    (message,) = capfd.readouterr().err.strip().splitlines()
    assert code == 2 and all(word in message for word in BAD[name].split()), message
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_imagenet_asks_for_its_thousand_classes_in_shards_too(layouts):
    config = compose(
        ["model=resnet20", "data=imagenet", f"data.root={layouts / 'parquet'}", "data.image_size=16", "sparsity=0.5"]
    )
    with pytest.raises(Refusal, match="has 2 classes, not 1,000"):
        build_task(config).open_data()
