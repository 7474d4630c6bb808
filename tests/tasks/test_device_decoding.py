"""data.decode=gpu: batches decoded ahead on a device are those that the loader's processes decode."""

import io
import warnings

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from making import configuration
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from pdp.config.command_line import main
from pdp.config.compose import compose
from pdp.config.identity import config_hash
from pdp.errors import Refusal, Stopped
from pdp.tasks.device_decoding import DecodedAhead
from pdp.tasks.encoded_images import jpeg_size
from pdp.tasks.folder_images import UnreadableImage
from pdp.tasks.images import ImagesTask
from pdp.tasks.sampling import set_epoch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def picture(number, width, height):
    """A picture of large shapes in colours of its own."""
    chance = np.random.default_rng(number)
    image = Image.new("RGB", (width, height), tuple(chance.integers(0, 256, 3).tolist()))
    for _ in range(3):
        corners = np.sort(chance.integers(0, min(width, height), (2, 2)), axis=0).reshape(-1).tolist()
        ImageDraw.Draw(image).rectangle(corners, fill=tuple(chance.integers(0, 256, 3).tolist()))
    return image


def saved(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image, quality=95, exif=exif)


def without_tables(content, marker=0xDB):
    """A JPEG whose header is right and which no decoder can decode: its tables of quantization are gone."""
    kept, at = content[:2], 2
    while content[at + 1] != 0xDA:
        length = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        kept += b"" if content[at + 1] == marker else content[at : at + length]
        at += length
    return kept + content[at:]


# How an image is stored, and whether a device may decode it.
KINDS = {
    "plain": (lambda one: saved(one, quality=95, subsampling=0), True),
    "half the colours": (lambda one: saved(one, quality=90), True),
    "progressive": (lambda one: saved(one, quality=95, progressive=True), True),
    "grey": (lambda one: saved(one.convert("L"), quality=95), True),
    "cmyk": (lambda one: saved(one.convert("CMYK"), quality=95), False),
    "rgb": (lambda one: saved(one, quality=95, keep_rgb=True), False),
    "rgb by its numbers": (lambda one: without_tables(saved(one, quality=95, keep_rgb=True), marker=0xEE), False),
    "turned": (turned, False),
    "png": (lambda one: saved(one, "PNG"), False),
    "clear": (lambda one: saved(one.convert("RGBA"), "WEBP", lossless=True), False),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes of 30 images, three of each kind, of many sizes; one is named .jpg and is none."""
    place = tmp_path_factory.mktemp("images")
    for part, count in (("train", 3), ("val", 1)):
        for label, class_name in enumerate(("cat", "dog")):
            folder = place / part / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                for at, (kind, (stored, _)) in enumerate(KINDS.items()):
                    image = picture(100 * label + 10 * number + at, 40 + 13 * number, 60 - 7 * at % 30)
                    ending = "jpg" if kind != "png" else "jpeg"
                    (folder / f"{kind} {number}.{ending}").write_bytes(stored(image))
    return place


def task_of(root, decode, **data):
    values = {"name": "image_folder", "root": str(root), "image_size": 32, "validation": 0.0}
    config = configuration(values | {"decode": decode} | data)
    config.recipe.augmentation = "random_resized_crop"
    task = ImagesTask(config)
    task.open_data()
    return task


def batches_of(task, device="cpu", workers=0, epochs=(0,), batch=16):
    loader = task.train_loader(batch, 3, "random_resized_crop", workers)
    accelerator = Accelerator(
        cpu=device == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False)
    )
    prepared = accelerator.prepare(loader)
    ahead = task.ahead(prepared, accelerator.device)
    found = []
    for epoch in epochs:
        set_epoch(prepared, epoch)
        found += list(ahead)
    assert len(ahead) == len(prepared)
    return found, ahead


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_loaders_processes(device, workers, root):
    usual, plain = batches_of(task_of(root, "cpu"), device, epochs=(0, 1))
    found, ahead = batches_of(task_of(root, "gpu"), device, workers, epochs=(0, 1))
    assert type(ahead) is DecodedAhead and type(plain) is not DecodedAhead
    assert len(found) == len(usual) == 6
    part = ahead.images.part
    seen = dict.fromkeys(KINDS, 0)
    for mine, theirs in zip(found, usual, strict=True):
        assert mine["image"].device.type == mine["label"].device.type == device
        assert mine["image"].dtype == torch.uint8 and mine["image"].shape == theirs["image"].shape
        for key in ("label", "index"):
            assert torch.equal(mine[key], theirs[key])
        for one, other, index in zip(mine["image"], theirs["image"], mine["index"].tolist(), strict=True):
            kind = part.source.name(int(part.rows[index])).rpartition("/")[2].rpartition(" ")[0]
            seen[kind] += 1
            off = (one.float() - other.float()).abs()
            if KINDS[kind][1]:
                assert off.mean() < (0.7 if device == "cpu" else 2), kind
            else:
                assert off.max() == 0, kind
    assert min(seen.values()) >= 7


def test_what_a_device_decodes_is_told_from_the_header(root):
    for kind, (stored, there) in KINDS.items():
        content = stored(picture(1, 50, 30))
        assert (jpeg_size(content, turned=True) is not None) == there, kind
        if there:
            assert jpeg_size(content, turned=True) == (30, 50)
            assert jpeg_size(content[:-40], turned=True) is None  # cut off
            assert jpeg_size(content + b"\0\0", turned=True) == (30, 50)  # padded, as cameras do
    assert jpeg_size(turned(picture(1, 50, 30)), turned=False) == (30, 50)
    assert jpeg_size(b"", turned=True) is None and jpeg_size(b"\xff\xd8\xff\xd9", turned=True) is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_left_out_or_named(device, workers, root, tmp_path, monkeypatch):
    monkeypatch.setattr("pdp.tasks.image_parts._WHOLE", 0)  # a large set, of which not every image was decoded before
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / name / f"{number}.jpg").write_bytes(saved(picture(number, 50, 40)))
    whole = saved(picture(7, 50, 40))
    (tmp_path / "train/dog/headless.jpg").write_bytes(without_tables(whole))
    (tmp_path / "train/cat/cut off.jpg").write_bytes(whole[: len(whole) // 2])
    assert jpeg_size(without_tables(whole), turned=True) == (40, 50)
    task = task_of(tmp_path, "gpu", unreadable="skip")
    found, _ = batches_of(task, device, workers, batch=14)
    usual, _ = batches_of(task_of(tmp_path, "cpu", unreadable="skip"), device, batch=14)
    (mine,), (theirs,) = found, usual
    assert len(mine["label"]) == 12 and len(mine["image"]) == 12
    assert torch.equal(mine["index"], theirs["index"]) and torch.equal(mine["label"], theirs["label"])
    assert (mine["image"].float() - theirs["image"].float()).abs().mean() < 2
    assert task.unreadable == ["train/cat/cut off.jpg", "train/dog/headless.jpg"]
    (tmp_path / "train/cat/cut off.jpg").unlink()
    with pytest.raises(UnreadableImage, match=r"train/dog/headless.jpg cannot be read as an image"):
        batches_of(task_of(tmp_path, "gpu"), device, workers, batch=13)


def test_a_compared_image_that_the_device_alone_reads_is_left_out_as_the_record_says(tmp_path, monkeypatch):
    class Lenient(DecodedAhead):
        def _decode(self, jpegs):
            return [self._one(jpeg) for jpeg in jpegs]

        def _one(self, jpeg):
            try:
                return next(iter(super()._decode([jpeg])))
            except RuntimeError:
                return torch.zeros(3, 40, 50, dtype=torch.uint8)

    monkeypatch.setattr("pdp.tasks.image_parts._WHOLE", 0)
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / name / f"{number}.jpg").write_bytes(saved(picture(number, 50, 40)))
    (tmp_path / "train/dog/headless.jpg").write_bytes(without_tables(saved(picture(7, 50, 40))))
    task = task_of(tmp_path, "gpu", unreadable="skip")
    loader = task.train_loader(7, 3, "random_resized_crop", 0)
    (batch,) = Lenient(loader, torch.device("cpu"), loader.dataset)
    assert task.unreadable == ["train/dog/headless.jpg"]
    assert len(batch["image"]) == len(batch["label"]) == 6


def test_a_large_batch_is_decoded_in_parts(root, monkeypatch):
    whole, _ = batches_of(task_of(root, "gpu"))
    monkeypatch.setattr("pdp.tasks.device_decoding._AT_ONCE", 15_000)
    parts, _ = batches_of(task_of(root, "gpu"))
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("wrong", ["upside down", "swapped colours", "black", "shifted"])
def test_a_device_that_makes_other_pictures_stops_the_run(wrong, root):
    class Wrong(DecodedAhead):
        def _decode(self, jpegs):
            change = {
                "upside down": lambda one: one.flip(1),
                "swapped colours": lambda one: one.flip(0),
                "black": torch.zeros_like,
                "shifted": lambda one: one.roll(12, 2),
            }[wrong]
            return [change(one) for one in super()._decode(jpegs)]

    task = task_of(root, "gpu")
    loader = task.train_loader(16, 3, "random_resized_crop", 0)
    with pytest.raises(Stopped, match="data.decode=gpu: this device makes another picture of .*: give data.decode=cpu"):
        next(iter(Wrong(loader, torch.device("cpu"), loader.dataset)))


def test_a_damaged_image_does_not_pass_for_a_device_that_decodes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pdp.tasks.image_parts._WHOLE", 0)  # a large set, of which not every image was decoded before
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / name / f"{number}.png").write_bytes(saved(picture(number, 50, 40), "PNG"))
    (tmp_path / "train/dog/headless.jpg").write_bytes(without_tables(saved(picture(7, 50, 40))))
    found, _ = batches_of(task_of(tmp_path, "gpu", unreadable="skip"), batch=5)
    assert [len(one["image"]) for one in found] == [4]


def rough(content):
    """A JPEG decoded without smoothing its colours, of which it holds every second one: as nvJPEG does."""
    luma, *colours = Image.open(io.BytesIO(content)).convert("YCbCr").split()
    width, height = luma.size
    small = [one.resize((-(-width // 2), -(-height // 2)), Image.Resampling.BOX) for one in colours]
    large = [one.resize((2 * one.width, 2 * one.height), Image.Resampling.NEAREST) for one in small]
    colours = [one.crop((0, 0, width, height)) for one in large]
    return torch.from_numpy(np.array(Image.merge("YCbCr", [luma, *colours]).convert("RGB"))).permute(2, 0, 1)


def test_small_images_whose_colours_are_not_smoothed_are_the_same_pictures(tmp_path):
    class Rough(DecodedAhead):
        def _decode(self, jpegs):
            return [rough(one.numpy().tobytes()) for one in jpegs]

    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(8):
            image = picture(number, 128, 128).resize((16, 16), Image.Resampling.BILINEAR)
            (tmp_path / name / f"{number}.jpg").write_bytes(saved(image, quality=95))
    loader = task_of(tmp_path, "gpu").train_loader(16, 3, "random_resized_crop", 0)
    (found,) = Rough(loader, torch.device("cpu"), loader.dataset)
    (usual,) = task_of(tmp_path, "cpu").train_loader(16, 3, "random_resized_crop", 0)
    off = (found["image"].float() - usual["image"].float()).abs()
    assert 0 < off.mean() < 8 and off.max() > 30


def test_images_of_a_later_batch_are_compared_where_the_first_has_none_to_decode(tmp_path):
    class Black(DecodedAhead):
        def _decode(self, jpegs):
            return [torch.zeros_like(one) for one in super()._decode(jpegs)]

    for name in ("train/cat", "val/cat", "train/dog", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(8):
            (tmp_path / name / f"{number}.png").write_bytes(saved(picture(number, 50, 40), "PNG"))
    order = batches_of(task_of(tmp_path, "cpu"), batch=8)[0][1]["index"].tolist()  # of the second batch
    part = task_of(tmp_path, "cpu")._part("train").part
    for index in order:
        name = tmp_path / part.source.name(int(part.rows[index]))
        name.write_bytes(saved(picture(index, 50, 40)))
    loader = task_of(tmp_path, "gpu").train_loader(8, 3, "random_resized_crop", 0)
    with pytest.raises(Stopped, match="makes another picture of"):
        list(Black(loader, torch.device("cpu"), loader.dataset))


def test_what_a_device_cannot_make_so_much_smaller_is_cropped_by_the_processor(tmp_path):
    for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / name / f"{number}.jpg").write_bytes(saved(picture(number, 900, 700)))
    task = task_of(tmp_path, "gpu", image_size=8)
    images = next(iter(task.train_loader(12, 3, "random_resized_crop", 0)))["image"]
    there = [one for one in range(12) if one not in images.decoded]
    assert there and len(images.decoded) and images.boxes[there, 2:].max() <= 64 * 8
    (found,), _ = batches_of(task, batch=12)
    (usual,), _ = batches_of(task_of(tmp_path, "cpu", image_size=8), batch=12)
    assert (found["image"].float() - usual["image"].float()).abs().mean() < 1


def test_warnings_of_other_threads_stay_what_they_are(root):
    seen = []

    class Watched(list):
        def __len__(self):
            seen.append(warnings.filters)
            return super().__len__()

    class Watching(DecodedAhead):
        def _decode(self, jpegs):
            return super()._decode(Watched(jpegs))

    loader = task_of(root, "gpu").train_loader(16, 3, "random_resized_crop", 0)
    next(iter(Watching(loader, torch.device("cpu"), loader.dataset)))
    assert seen and all(one is warnings.filters for one in seen)


def test_a_device_that_decodes_nothing_stops_the_run(root):
    class Unable(DecodedAhead):
        def _decode(self, jpegs):
            torch.ops.image.decode_jpegs_cuda(jpegs, 3, torch.device("cpu"))  # raises, on every machine

    loader = task_of(root, "gpu").train_loader(16, 3, "random_resized_crop", 0)
    with pytest.raises(Stopped, match="torchvision decodes no image on cpu .*: give data.decode=cpu"):
        next(iter(Unable(loader, torch.device("cpu"), loader.dataset)))


def test_images_of_another_size_than_their_header_says_are_decoded_by_the_processor(root):
    class Smaller(DecodedAhead):
        def _decode(self, jpegs):
            return [one[:, 1:] for one in super()._decode(jpegs)]

    task, usual = task_of(root, "gpu"), task_of(root, "cpu")
    loader = task.train_loader(16, 3, "random_resized_crop", 0)
    found = next(iter(Smaller(loader, torch.device("cpu"), loader.dataset)))
    assert torch.equal(found["image"], next(iter(usual.train_loader(16, 3, "random_resized_crop", 0)))["image"])


def test_what_is_measured_and_what_calibrates_is_decoded_as_ever(root):
    mine, theirs = task_of(root, "gpu"), task_of(root, "cpu")
    for loaders in (
        [task.evaluation_loader("test", 8, 0) for task in (mine, theirs)],
        [task.train_loader(8, 0, "none", 0) for task in (mine, theirs)],
    ):
        for one, other in zip(*loaders, strict=True):
            assert torch.equal(one["image"], other["image"])
    assert mine.data_fingerprint == theirs.data_fingerprint


WORDS = ["model=resnet20", "data=image_folder", "data.image_size=32", "prune=random", "sparsity=0.5", "recipe.epochs=2"]
WORDS += ["recipe.batch_size=16", "recipe.lr_warmup=0", "device=cpu", "data.validation=0"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            [*WORDS, "data.decode=gpu"],
            "data.decode=gpu needs a CUDA device, and this run is on cpu: give data.decode=cpu",
        ),
        ([*WORDS, "data.decode=disk"], "data.decode=disk"),
        ([*WORDS, "data.decode=gpu", "recipe.augmentation=none"], "is of recipe.augmentation=random_resized_crop"),
        (
            ["model=resnet20", "data=digits", "data.decode=gpu", "prune=none"],
            "data.decode=gpu: data=digits is not encoded",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words, told, root, tmp_path, capsys):
    place = [] if "data=digits" in words else [f"data.root={root}"]
    assert main("train", [*words, *place, f"output_dir={tmp_path / 'runs'}"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("runs/*/seed*"))


def test_the_run_is_another_and_the_plain_one_is_what_it_was(root):
    hashes = [
        config_hash(compose([*WORDS, f"data.root={root}", *more]), "0" * 16) for more in ([], ["data.decode=gpu"])
    ]
    assert hashes[0] != hashes[1]
    assert hashes[0] == config_hash(compose([*WORDS, f"data.root={root}", "data.decode=cpu"]), "0" * 16)


def test_a_run_trains_on_them_and_again_the_same(root, tmp_path, monkeypatch):
    # A processor stands in for the device, which decodes by the same calls.
    monkeypatch.setattr("pdp.training.run.check_device", lambda *_: None)
    weights = []
    for name in ("first", "second"):
        words = [*WORDS, f"data.root={root}", "data.decode=gpu", "data.workers=2", f"output_dir={tmp_path / name}"]
        assert main("train", words) == 0
        weights.append(load_file(next(tmp_path.glob(f"{name}/*/seed0/model.safetensors"))))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_refusal_names_the_data_that_has_nothing_to_decode():
    with pytest.raises(Refusal, match="data=cifar10 is not encoded: drop it, or give data=image_folder"):
        ImagesTask(configuration({"name": "cifar10", "decode": "gpu"}))
