"""Listings of folders: kept while every folder is as it was, made once for several processes, and the same as new ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdp.tasks import listing
from pdp.tasks.folder_images import listing_hash, scan_folder
from pdp.tasks.listing import read_listing

ROOT = Path(__file__).resolve().parents[2]
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


def as_listed(root):
    return [scan_folder(str(root), name) for name in NAMES]


def same(found, root):
    """A listing equals one that was just made, in order and hash."""
    parts, digest = found
    fresh = as_listed(root)
    assert digest == listing_hash(*fresh)
    for part, other in zip(parts.values(), fresh, strict=True):
        assert part.classes == other.classes
        assert np.asarray(part.paths).tolist() == other.paths.tolist()
        assert part.labels.tolist() == other.labels.tolist() and part.sizes.tolist() == other.sizes.tolist()
    return True


def test_a_kept_listing_is_taken_while_nothing_changed_and_is_the_same(root, scans):
    assert same(read_listing(str(root), NAMES), root)
    assert scans == list(NAMES)
    for _ in range(2):
        assert same(read_listing(str(root), NAMES), root)
    assert scans == list(NAMES)
    part = read_listing(str(root), NAMES)[0]["train"]
    assert isinstance(part.paths, np.memmap)
    chosen = part.subset(np.array([1, 5, 7])).subset(np.array([2, 0]))
    assert [chosen.paths[one] for one in range(2)] == [part.paths[7], part.paths[1]] and len(chosen.paths) == 2


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


def a_part_that_was_not_there(root):
    (root / "val").rename(root / "away")
    read_listing(str(root), NAMES)
    (root / "away").rename(root / "val")


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
        a_part_that_was_not_there,
    ],
)
def test_whatever_changes_is_seen(change, root, scans):
    read_listing(str(root), NAMES)
    time.sleep(0.02)
    change(root)
    assert same(read_listing(str(root), NAMES), root)


def test_a_folder_that_is_just_being_filled_is_not_kept(root, scans, monkeypatch):
    """A change in the same instant would leave its time as it is."""
    monkeypatch.setattr(listing, "SETTLED", 3600.0)
    for _ in range(2):
        assert same(read_listing(str(root), NAMES), root)
    assert scans == [*NAMES, *NAMES]


@pytest.mark.parametrize("damage", ["description", "array", "gone", "another format"])
def test_a_damaged_cache_is_made_anew(damage, root, scans, tmp_path):
    read_listing(str(root), NAMES)
    (description,) = (tmp_path / "cache" / "listings").glob("*.json")
    arrays = sorted((tmp_path / "cache" / "listings").glob("*.npy"))
    if damage == "description":
        description.write_bytes(description.read_bytes()[:50])
    elif damage == "another format":
        description.write_text("[1, 2]")
    elif damage == "array":
        arrays[0].write_bytes(arrays[0].read_bytes()[:100])
    else:
        arrays[1].unlink()
    assert same(read_listing(str(root), NAMES), root)
    assert same(read_listing(str(root), NAMES), root)
    assert scans == [*NAMES, *NAMES]
    assert len(list((tmp_path / "cache" / "listings").glob("*.npy"))) == 3


def test_where_no_cache_can_be_written_it_lies_beside_the_runs_or_nowhere(root, scans, tmp_path, monkeypatch):
    monkeypatch.setenv("PDP_CACHE_DIR", "/proc/none")
    for _ in range(2):
        assert same(read_listing(str(root), NAMES, str(tmp_path / "runs" / ".cache")), root)
    assert scans == list(NAMES) and list((tmp_path / "runs" / ".cache" / "listings").glob("*.json"))
    for _ in range(2):
        assert same(read_listing(str(root), NAMES, "/dev/full/runs"), root)
    assert scans == [*NAMES, *NAMES, *NAMES]


def test_of_several_processes_that_start_at_once_one_lists(root, tmp_path):
    """Each writes down when it read a folder; the others wait for it and take its listing."""
    code = """
import sys, time
from pdp.tasks import listing
from pdp.tasks.folder_images import scan_folder
listing.LEAST, listing.SETTLED = 1, 0.0
def slow(*given):
    open(sys.argv[2], "a").write(given[1] + "\\n")
    time.sleep(0.5)
    return scan_folder(*given)
listing.scan_folder = slow
print(listing.read_listing(sys.argv[1], ("train", "val"))[1].hex())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PDP_CACHE_DIR": str(tmp_path / "shared")}
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "read")]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    hashes = {process.communicate()[0] for process in running}
    assert len(hashes) == 1 and (tmp_path / "read").read_text().split() == list(NAMES)
