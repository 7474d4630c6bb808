import pytest
from making import configuration, write_fashion, write_folder

from pdp.errors import Refusal
from pdp.tasks import build_task


def opened(data):
    task = build_task(configuration(data))
    task.open_data()
    return task


REFUSED = [
    ({"name": "digit"}, "data.name=digit is unknown for images; near it: digits"),
    ({"name": "digits", "validation": 1.0}, "data.validation=1.0"),
    ({"name": "digits", "limit": 0}, "data.limit=0"),
    ({"name": "digits", "image_size": 0}, "data.image_size=0"),
    ({"name": "digits", "unreadable": "ignore"}, "data.unreadable=ignore is unknown; it can be stop, skip"),
    ({"name": "digits", "validation": 0.0001}, "data.validation=0.0001 of 1438 training images leaves a part empty"),
    ({"name": "imagenet"}, "data.root or IMAGENET_DIR is not set"),
    ({"name": "fashion_mnist"}, "data.root is not set"),
    ({"name": "fashion_mnist", "root": "absent"}, "data.root=absent does not exist"),
    ({"name": "image_folder", "root": "absent"}, "data.root=absent does not exist"),
    ({"name": "image_folder", "root": "empty"}, "data.root=empty is empty"),
    ({"name": "cifar10", "root": "empty"}, "data.root=empty is empty"),
    ({"name": "cifar10", "root": "good"}, "data.root=good holds no whole cifar-10-batches-py/"),
    ({"name": "imagenet", "root": "good"}, "data.root=good has 2 classes, not 1,000"),
    ({"name": "image_folder", "root": "train_only"}, "data.root=train_only has nothing to test on"),
    ({"name": "image_folder", "root": "no_classes"}, "train/ has no class folders"),
    ({"name": "image_folder", "root": "texts"}, "val/b holds no image .*extensions read: .jpg"),
    ({"name": "image_folder", "root": "more_train"}, r"train/ has 2 classes that val/ lacks \(b, c\)"),
    ({"name": "image_folder", "root": "more_val"}, r"val/ has a class that train/ lacks \(b\)"),
    ({"name": "fashion_mnist", "root": "cut"}, "data.root=cut holds no whole FashionMNIST/raw"),
]


@pytest.mark.parametrize(("data", "words"), REFUSED)
def test_bad_data_is_refused_in_one_line(tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "good", {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}})
    write_folder(tmp_path / "train_only", {"train": {"a": 1}})
    write_folder(tmp_path / "more_train", {"train": {"a": 1, "b": 1, "c": 1}, "val": {"a": 1}})
    write_folder(tmp_path / "more_val", {"train": {"a": 1}, "val": {"a": 1, "b": 1}})
    write_folder(tmp_path / "texts", {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 0}})
    (tmp_path / "texts/val/b/notes.txt").write_text("hello")
    (tmp_path / "no_classes/train").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    images = write_fashion(tmp_path / "cut") / "FashionMNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:500])
    with pytest.raises(Refusal, match=words) as refused:
        opened(data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "imagenet", "image_folder"])
def test_noise_stands_in_for_absent_data_and_says_so(name):
    data = {"name": name, "noise_if_absent": True, "image_size": 16, "root": "absent"}
    task = opened(data)
    assert task.sizes() == {"train": 58, "validation": 6, "test": 32}
    assert task.data_name == name and "Noise" in task.data_note
    assert task.data_fingerprint == opened(data).data_fingerprint
    batch = next(iter(task.train_loader(8, 0, "none", 0)))
    assert batch["image"].shape == (8, 3, 16, 16)
    assert opened(data | {"limit": 5}).sizes() == {"train": 5, "validation": 5, "test": 5}


def test_noise_never_stands_in_for_data_that_is_there_but_damaged(tmp_path):
    write_folder(tmp_path, {"train": {"a": 1}})
    with pytest.raises(Refusal, match="nothing to test on"):
        opened({"name": "image_folder", "root": str(tmp_path), "noise_if_absent": True})
