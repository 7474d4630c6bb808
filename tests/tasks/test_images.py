import hashlib
from itertools import islice

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from making import configuration, write_cifar, write_fashion, write_folder
from torchvision import datasets

from pdp.errors import Refusal, Stopped
from pdp.tasks import build_task, image_data
from pdp.tasks.image_data import read_torchvision
from pdp.tasks.sampling import permutation, set_epoch


def opened(data, model=None):
    task = build_task(configuration(data, model))
    task.open_data()
    return task


def joined(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parts = {part: {"cat": cats, "dog": 5} for part, cats in (("train", 9), ("val", 4))}
    return write_folder(tmp_path_factory.mktemp("folder"), parts)


def test_digits_are_split_by_a_fixed_seed_and_normalised():
    tasks = [opened({"name": "digits", "validation": 0.1}, {"smallest_input": 16}) for _ in range(2)]
    assert tasks[0].sizes() == {"train": 1294, "validation": 144, "test": 359}
    assert sum(tasks[0].sizes().values()) == 1797
    parts = [joined(tasks[0].evaluation_loader(part, 100, 0)) for part in ("validation", "test")]
    assert same(parts[1], joined(tasks[1].evaluation_loader("test", 7, 0)))
    train = joined(tasks[0].train_loader(1294, 0, "none", 0))
    assert train["image"].shape == (1294, 3, 16, 16) and train["image"].dtype == torch.float32
    assert abs(train["image"].mean()) < 0.05 and 0.7 < train["image"].std() < 1.05
    everything = torch.cat([train["image"], parts[0]["image"], parts[1]["image"]])[:, 0].flatten(1)
    # Two of the 1,797 are alike; a sample in two parts would show as many more.
    assert len(torch.unique(everything, dim=0)) >= 1796
    for part in (train, *parts):
        assert torch.bincount(part["label"]).float().std() < 0.06 * len(part["label"]) / 10 + 1
    assert tasks[0].metric_name == "top1" and tasks[0].upper_bound == 1.0 and tasks[0].exclude == ()
    assert not tasks[0].test_is_validation


def test_without_a_validation_split_the_test_set_monitors():
    task = opened({"name": "digits", "validation": 0.0})
    assert task.test_is_validation and task.sizes() == {"train": 1438, "validation": 0, "test": 359}
    assert same(joined(task.evaluation_loader("validation", 50, 0)), joined(task.evaluation_loader("test", 50, 0)))


def test_fingerprint_follows_content_and_limit_but_not_the_validation_share(tmp_path):
    task = build_task(configuration({"name": "digits"}))
    with pytest.raises(RuntimeError, match="open_data"):
        _ = task.data_fingerprint
    plain, limited = opened({"name": "digits"}), opened({"name": "digits", "limit": 64})
    assert len(plain.data_fingerprint) == 16 and int(plain.data_fingerprint, 16) >= 0
    assert plain.data_fingerprint == opened({"name": "digits", "validation": 0.2}).data_fingerprint
    assert plain.data_fingerprint != limited.data_fingerprint
    assert limited.sizes() == {"train": 64, "validation": 64, "test": 64}
    labels = joined(limited.train_loader(64, 0, "none", 0))["label"]
    assert set(torch.bincount(labels).tolist()) == {6, 7}
    root = write_folder(tmp_path, {"train": {"a": 3, "b": 3}, "val": {"a": 2, "b": 2}})
    data = {"name": "image_folder", "root": str(root), "image_size": 8, "validation": 0.0}
    before = opened(data).data_fingerprint
    assert opened(data).data_fingerprint == before
    (root / "val" / "a" / "more.png").write_bytes((root / "val" / "a" / "000.png").read_bytes())
    assert opened(data).data_fingerprint != before


def test_fashion_mnist_is_read_from_its_idx_files(tmp_path):
    task = opened({"name": "fashion_mnist", "root": str(write_fashion(tmp_path)), "validation": 0.25})
    assert task.sizes() == {"train": 30, "validation": 10, "test": 20}
    batch = next(iter(task.evaluation_loader("test", 6, 0)))
    assert batch["image"].shape == (6, 3, 28, 28) and batch["label"].tolist() == list(range(6))
    assert torch.equal(batch["image"][:, 0], batch["image"][:, 2])


def test_cifar10_is_read_as_it_was_written(tmp_path):
    contents, pixels = write_cifar(tmp_path)
    hashes = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}

    class Tiny(datasets.CIFAR10):
        train_list = [[name, hashes[name]] for name in contents if name.startswith("data")]
        test_list = [["test_batch", hashes["test_batch"]]]
        meta = datasets.CIFAR10.meta | {"md5": hashes["batches.meta"]}

    train, test = read_torchvision("cifar10", str(tmp_path), Tiny)
    assert train[0].shape == (50, 3, 32, 32) and test[1].tolist() == list(range(10))
    np.testing.assert_array_equal(test[0].numpy(), pixels)


@pytest.mark.parametrize("augmentation", ["none", "pad_crop_flip", "random_resized_crop"])
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_training_batches_depend_on_seed_epoch_and_sample_alone(folder, kind, augmentation):
    data = {"name": "digits", "limit": 40}
    if kind == "folder":
        data = {"name": "image_folder", "root": str(folder), "image_size": 10, "validation": 0.0}
    task = opened(data, {"smallest_input": 10})
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()

    def epoch(number, seed=1, batch=4, workers=0, start=0):
        loader = task.train_loader(batch, seed, augmentation, workers)
        set_epoch(loader, number, start)
        return joined(loader)

    wanted = epoch(2)
    assert same(wanted, epoch(2, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    assert same({key: value[8:] for key, value in wanted.items()}, epoch(2, start=2, workers=2))
    seven = epoch(2, batch=7)
    shared = min(len(seven["index"]), len(wanted["index"]))
    assert same({k: v[:shared] for k, v in seven.items()}, {k: v[:shared] for k, v in wanted.items()})
    total = task.sizes()["train"]
    assert wanted["index"].tolist() == permutation(1, 2, total)[: total // 4 * 4].tolist()
    other = epoch(3)
    assert not torch.equal(other["index"], wanted["index"])
    positions = {int(index): image for index, image in zip(other["index"], other["image"], strict=True)}
    again = zip(wanted["index"].tolist(), wanted["image"], strict=True)
    pairs = [(positions[index], image) for index, image in again if index in positions]
    alike = sum(torch.equal(first, second) for first, second in pairs)
    assert alike == len(pairs) if augmentation == "none" else alike < len(pairs) / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_prepared_by_accelerate_epochs_and_starts_still_reach_the_sampler(workers):
    task = opened({"name": "digits", "limit": 40})
    settings = DataLoaderConfiguration(split_batches=True, even_batches=False)
    accelerator = Accelerator(cpu=True, dataloader_config=settings)
    plain = task.train_loader(8, 1, "pad_crop_flip", 0)
    prepared = accelerator.prepare(task.train_loader(8, 1, "pad_crop_flip", workers))
    for epoch, start in ((5, 3), (6, 0), (2, 0), (2, 1), (2, 0)):
        set_epoch(plain, epoch, start)
        set_epoch(prepared, epoch, start)
        assert same(joined(prepared), joined(plain))
    for epoch in (7, 8):  # a pass cut short, as by a trainer that counts its own batches
        plain.batch_sampler.set_epoch(epoch, 1)
        prepared.batch_sampler.set_epoch(epoch, 1)
        assert same(joined(islice(prepared, 2)), joined(islice(plain, 2)))
    evaluation = accelerator.prepare(task.evaluation_loader("test", 7, workers))
    assert joined(evaluation)["index"].tolist() == list(range(40))


def test_a_set_too_large_to_enlarge_at_once_is_enlarged_batch_by_batch(monkeypatch):
    data, model = {"name": "digits", "limit": 40}, {"smallest_input": 20}
    once = opened(data, model)
    monkeypatch.setattr(image_data, "_ENLARGE_ONCE", 100)
    later = opened(data, model)
    for task in (once, later):
        assert task.example_input().shape == (1, 3, 20, 20)
    assert same(joined(once.evaluation_loader("test", 9, 0)), joined(later.evaluation_loader("test", 7, 0)))


def test_evaluation_of_a_folder_resizes_the_short_side_and_cuts_the_middle(tmp_path):
    from PIL import Image

    root = write_folder(tmp_path, {"val": {"a": 1}}, side=4)
    pixels = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "val" / "a" / "000.png")
    task = opened({"name": "image_folder", "root": str(root), "image_size": 224, "validation": 0.1})
    batch = joined(task.evaluation_loader("test", 4, 0))
    assert batch["image"].dtype == torch.uint8
    shown: list[torch.Tensor] = []
    task.observe(lambda images: shown.append(images) or torch.zeros(1, 1), batch)
    image = shown[0][0].double()
    middle = torch.from_numpy(pixels[16:240, 38:262]).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(image, ((middle - mean) / std).double(), atol=1e-5, rtol=0)
    for asked in (lambda: task.train_loader(2, 0, "none", 0), lambda: task.evaluation_loader("validation", 2, 0)):
        with pytest.raises(Refusal, match="has no train/ folder"):
            asked()


def test_a_folder_with_val_and_test_keeps_val_for_validation(tmp_path):
    root = write_folder(tmp_path, {"train": {"a": 6}, "val": {"a": 3}, "test": {"a": 2}})
    data = {"name": "image_folder", "root": str(root), "image_size": 8}
    assert opened(data).sizes() == {"train": 6, "validation": 3, "test": 2}
    assert opened(data | {"validation": 0.0}).sizes() == {"train": 6, "validation": 0, "test": 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_in_one_line_or_is_left_out(tmp_path, workers):
    root = write_folder(tmp_path, {"train": {"a": 4, "b": 4}, "val": {"a": 3, "b": 3}}, kind="jpg")
    data = {"name": "image_folder", "root": str(root), "image_size": 8, "validation": 0.0}
    whole = opened(data)
    for place in ("train/a/001.jpg", "val/a/001.jpg", "val/b/001.jpg", "val/b/002.jpg"):
        (root / place).write_bytes((root / place).read_bytes()[:200])
    with pytest.raises(Refusal, match="train/a/001.jpg cannot be read.*nor can 3 others.*data.unreadable=skip"):
        opened(data)
    with pytest.raises(Stopped, match="val/a/001.jpg cannot be read.*data.unreadable=skip") as stopped:
        list(whole.evaluation_loader("test", 2, workers))  # damaged meanwhile
    assert "\n" not in str(stopped.value)
    task = opened(data | {"unreadable": "skip"}, {"name": "resnet20"})
    assert task.unreadable == []
    model = task.build_model().eval()
    observed = [task.observe(model, batch) for batch in task.evaluation_loader("test", 2, workers)]
    assert [len(part["index"]) for part in observed] == [1, 2, 0]
    assert all(part.keys() == observed[0].keys() for part in observed)
    together = {key: torch.cat([part[key] for part in observed]).numpy() for key in observed[0]}
    assert together["index"].tolist() == [0, 2, 3]
    assert 0 <= task.metrics(together)["top1"] <= 1
    assert task.unreadable == ["val/a/001.jpg", "val/b/001.jpg", "val/b/002.jpg"]
    loader = task.train_loader(4, 0, "random_resized_crop", workers)
    for epoch in range(2):
        set_epoch(loader, epoch)
        assert sorted(joined(loader)["index"].tolist()) == [0, 2, 3, 4, 5, 6, 7]
    assert len(task.unreadable) == 4


def test_a_dry_run_knows_classes_shape_and_sizes_without_data():
    for name in ("imagenet", "image_folder"):
        task = build_task(configuration({"name": name, "root": "/absent"}, {"name": "mobilenet_v2"}))
        assert task.example_input().shape == (1, 3, 224, 224)
        assert task.build_model().classifier[1].out_features == 1000
    for validation in (0.0, 0.1):
        data = {"name": "digits", "validation": validation}
        assert build_task(configuration(data)).sizes() == opened(data).sizes()
    task = build_task(configuration({"name": "digits"}, {"name": "mobilenet_v1", "smallest_input": 32}))
    assert task.example_input().shape == (1, 3, 32, 32)


def test_the_note_says_that_no_data_was_named():
    config = configuration({"name": "digits", "unasked": True})
    task = build_task(config)
    task.open_data()
    assert task.data_note.startswith(
        "No ImageNet was named (data.root= or IMAGENET_DIR), so this trains on scikit-learn's handwritten digits:"
        " 1,797 grey 8x8 images, 10 classes."
    )
    assert "1,294 train, 144 validation, 359 test" in task.data_note


def test_loss_and_metrics_against_float64_formulas():
    task = opened({"name": "digits"})
    torch.manual_seed(0)
    model = task.build_model().eval()
    with torch.no_grad():
        observed = [task.observe(model, batch) for batch in task.evaluation_loader("test", 100, 0)]
        together = {key: torch.cat([part[key] for part in observed]).numpy() for key in observed[0]}
        batch = next(iter(task.evaluation_loader("test", 359, 0)))
        logits = model(batch["image"]).double()
        smoothed = task.loss(model, batch, 0.1)
    assert together["index"].dtype == np.int64 and together["top5"].dtype == np.bool_
    labels = batch["label"]
    logs = logits - logits.logsumexp(1, keepdim=True)
    picked = -logs[torch.arange(359), labels]
    ranks = (logits > logits[torch.arange(359), labels][:, None]).sum(1)
    expected = {"top1": ranks.eq(0), "top5": ranks.lt(5), "loss": picked}
    metrics = task.metrics(together)
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert metrics[name] == pytest.approx(values.double().mean().item(), abs=1e-5)
    assert smoothed.item() == pytest.approx((0.9 * picked - 0.1 * logs.mean(1)).mean().item(), abs=1e-5)


def test_training_batches_that_cannot_be_shared_out_are_refused(monkeypatch):
    task = opened({"name": "digits", "limit": 10})
    assert len(list(task.train_loader(16, 0, "none", 0))) == 1
    with pytest.raises(Refusal, match="recipe.augmentation=flip"):
        task.train_loader(4, 0, "flip", 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Refusal, match="a batch of 16 over 2 processes"):
        task.train_loader(16, 0, "none", 0)


def test_unknown_task_is_refused():
    config = configuration({"name": "digits"})
    config.model.task = "sounds"
    with pytest.raises(Refusal, match="model.task=sounds is unknown; it can be images"):
        build_task(config)


@pytest.mark.parametrize("there", [True, False])
def test_the_digits_are_scikit_learn_s(there, monkeypatch):
    """Read from its file, or through it where the file lies elsewhere."""
    from sklearn.datasets import load_digits

    if not there:
        monkeypatch.setattr(image_data.importlib.util, "find_spec", lambda name: None)
    rows, right = image_data._digits(), load_digits()
    assert np.array_equal(rows[:, :64].reshape(-1, 8, 8), right.images)
    assert np.array_equal(rows[:, 64], right.target)
