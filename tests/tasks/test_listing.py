"""Cached listings of folders: valid while no folder changes, made once for several processes, equal to new ones."""

import os
import time

import numpy as np
import pytest
from PIL import Image

from pdp.benchmarks.forked_runs import CONTEXT
from pdp.tasks import listing
from pdp.tasks.image_layouts import scan_folder
from pdp.tasks.listing import read_listing

NAMES = ("train", "val")


@pytest.fixture
def root(tmp_path):
    """Three classes, one of them with a folder inside, an hour old."""
    folder = tmp_path / "images"
    for part, count in (("train", 4), ("val", 2)):
        for label in ("ant", "bee", "cat"):
            inside = folder / part / label / ("more" if label == "cat" else "")
            inside.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(inside / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def kept_from_the_first_image_on(monkeypatch, tmp_path):
    monkeypatch.setattr(listing, "LEAST", 1)
    monkeypatch.setattr(listing, "SETTLED", 0.0)
    monkeypatch.setenv("PDP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def scans(monkeypatch):
    """How often a folder was read."""
    done = []
    monkeypatch.setattr(listing, "scan_folder", lambda *given: done.append(given[1]) or scan_folder(*given))
    return done


def read_both(root, otherwise=None):
    return [read_listing(str(root), name, name, otherwise) for name in NAMES]


def same(found, root):
    """What is kept equals one that was just made, in order and signature."""
    for part, name in zip(found, NAMES, strict=True):
        other = scan_folder(str(root), name, name)
        assert part.classes == other.classes and part.name == other.name
        assert part.source.paths.tolist() == other.source.paths.tolist()
        assert part.labels.tolist() == other.labels.tolist() and part.rows.tolist() == other.rows.tolist()
        assert part.source.signature == other.source.signature and part.source.bytes_known == other.source.bytes_known
    return True


def test_a_kept_listing_is_taken_while_nothing_changed_and_is_the_same(root, scans):
    assert same(read_both(root), root)
    assert scans == list(NAMES)
    for _ in range(2):
        assert same(read_both(root), root)
    assert scans == list(NAMES)
    part = read_both(root)[0]
    chosen = part.subset(np.array([1, 5, 7])).subset(np.array([2, 0]))
    assert isinstance(chosen.source.paths, np.memmap)  # one for all processes, whatever is chosen of it
    assert [chosen.source.name(row) for row in chosen.rows] == ["train/bee/3.png", "train/ant/1.png"]


def add(root):
    Image.new("RGB", (8, 8)).save(root / "train" / "ant" / "new.png")


def take_away(root):
    (root / "val" / "bee" / "1.png").unlink()


def rename(root):
    (root / "train" / "cat" / "more" / "0.png").rename(root / "train" / "cat" / "more" / "z.png")


def add_a_class(root):
    for part in NAMES:
        (root / part / "dog").mkdir()
        Image.new("RGB", (8, 8)).save(root / part / "dog" / "0.png")


def swap_two_classes(root):
    """By renames, which keep the folders' own times of change."""
    train = root / "train"
    (train / "ant").rename(train / "x")
    (train / "bee").rename(train / "ant")
    (train / "x").rename(train / "bee")


def another_folder_in_its_place(root):
    """With the same times, as rsync and cp -a leave them."""
    import shutil

    shutil.copytree(root, root.with_name("other"))
    (root.with_name("other") / "train" / "ant" / "0.png").rename(root.with_name("other") / "train" / "ant" / "y.png")
    for folder in [*root.rglob("*"), root]:
        times = folder.stat()
        twin = root.with_name("other") / folder.relative_to(root)
        if twin.exists():
            os.utime(twin, ns=(times.st_atime_ns, times.st_mtime_ns))
    root.rename(root.with_name("former"))
    root.with_name("other").rename(root)


def add_and_set_the_time_back(root):
    times = (root / "train" / "ant").stat()
    add(root)
    os.utime(root / "train" / "ant", ns=(times.st_atime_ns, times.st_mtime_ns))


def write_anew_in_place(root):
    """No folder's time moves: its size tells."""
    (root / "train" / "ant" / "0.png").write_bytes((root / "train" / "ant" / "0.png").read_bytes() + b"0")


@pytest.mark.parametrize(
    "change",
    [
        add,
        take_away,
        rename,
        add_a_class,
        swap_two_classes,
        another_folder_in_its_place,
        add_and_set_the_time_back,
        write_anew_in_place,
    ],
)
def test_whatever_changes_is_seen(change, root, scans):
    read_both(root)
    time.sleep(0.02)
    change(root)
    assert same(read_both(root), root)


def test_a_folder_that_is_just_being_filled_is_not_kept(root, scans, monkeypatch):
    """A change in the same instant would leave its time as it is."""
    monkeypatch.setattr(listing, "SETTLED", 3600.0)
    for _ in range(2):
        assert same(read_both(root), root)
    assert scans == [*NAMES, *NAMES]


@pytest.mark.parametrize("damage", ["description", "array", "gone", "another format"])
def test_a_damaged_cache_is_made_anew(damage, root, scans, tmp_path):
    read_both(root)
    for description in (tmp_path / "cache" / "listings").glob("*.json"):
        if damage == "description":
            description.write_bytes(description.read_bytes()[:50])
        elif damage == "another format":
            description.write_text("[1, 2]")
    for array in (tmp_path / "cache" / "listings").glob("*-paths.npy"):
        if damage == "array":
            array.write_bytes(array.read_bytes()[:100])
        elif damage == "gone":
            array.unlink()
    assert same(read_both(root), root)
    assert same(read_both(root), root)
    assert scans == [*NAMES, *NAMES]
    assert len(list((tmp_path / "cache" / "listings").glob("*.npy"))) == 6


def test_where_no_cache_can_be_written_it_lies_beside_the_runs_or_nowhere(root, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("PDP_CACHE_DIR", "/proc/none")
    for _ in range(2):
        assert same(read_both(root, str(tmp_path / "runs" / ".cache")), root)
    assert scans == list(NAMES) and list((tmp_path / "runs" / ".cache" / "listings").glob("*.json"))
    for _ in range(2):
        assert same(read_both(root, "/dev/full/runs"), root)
    assert scans == [*NAMES, *NAMES, *NAMES]


def list_slowly(root, folder, number):
    """Lists both parts as one of several processes, and writes down which folders it read itself."""
    os.environ["PDP_CACHE_DIR"] = str(folder / "shared")
    listing.LEAST, listing.SETTLED = 1, 0.0

    def slow(*given):
        with open(folder / "read", "a") as read:
            read.write(given[1] + "\n")
        time.sleep(0.5)
        return scan_folder(*given)

    listing.scan_folder = slow
    found = [listing.read_listing(str(root), name, name).source.signature.hex() for name in NAMES]
    (folder / f"{number}.txt").write_text(" ".join(found))


def test_of_several_processes_that_start_at_once_one_lists(root, tmp_path):
    """Each writes down when it read a folder; the others wait for it and take its listing."""
    running = [CONTEXT.Process(target=list_slowly, args=(root, tmp_path, number)) for number in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0, 0]
    answers = {(tmp_path / f"{number}.txt").read_text() for number in range(3)}
    assert len(answers) == 1 and (tmp_path / "read").read_text().split() == list(NAMES)
