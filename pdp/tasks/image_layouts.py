"""The layouts of images under data.root: folders per part and class, the hub's parquet shards, WebDataset tar files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pdp.errors import Refusal
from pdp.tasks.image_decoding import EXTENSIONS
from pdp.tasks.image_parts import ImageFiles, ImagePart
from pdp.tasks.image_shards import Shards, read_parquet_shards, read_tar_shards
from pdp.wording import one_line

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing"),
}
_READERS: dict[str, Callable[[str, list[Path]], Shards]] = {".parquet": read_parquet_shards, ".tar": read_tar_shards}


Scan = Callable[[str, str, str], ImagePart]


def find_parts(root: str, whole: bool, scan: Scan | None = None) -> tuple[dict[str, ImagePart], str]:
    """The parts under `root` by name (train, val, test, or "all" if there is no split yet), and their layout in words.

    `whole` allows class folders, or shards, without a split into parts. `scan` lists the images of a part's folder.
    Raises `Refusal`.
    """
    scan = scan or scan_folder
    folder = os.path.expanduser(root)
    split = {part: place for part, names in PARTS.items() if (place := _folder_of(folder, names))}
    if any(_class_folders(os.path.join(folder, place)) for place in split.values()):
        found = {part: scan(root, place, part) for part, place in split.items()}
        return found, "folders"
    for suffix, reader in _READERS.items():
        shards = _shards(Path(folder), suffix, whole)
        if shards:
            return _read_shards(root, shards, reader), "parquet shards" if suffix == ".parquet" else "tars"
    if split:
        part, place = next(iter(split.items()))
        return {part: scan(root, place, part)}, "folders"  # its error message says what is missing
    if whole and _class_folders(folder):
        return {"all": scan(root, "", "all")}, "a folder for each class"
    return {}, ""


def _folder_of(folder: str, names: tuple[str, ...]) -> str | None:
    """The folder that has one of `names`, ignoring case; returned as it is spelled on the disk."""
    with os.scandir(folder) as entries:
        there = {entry.name.lower(): entry.name for entry in entries if entry.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _class_folders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


# ---------------------------------------------------------------------------------------------------------- folders


def scan_folder(root: str, place: str, part: str, seen: Callable[[str], None] = lambda folder: None) -> ImagePart:
    """Lists the images `<root>/<place>/<class>/**`, sorted; raises `Refusal`.

    Calls `seen` with each folder before reading it.
    """
    folder = os.path.expanduser(root)
    base = os.path.join(folder, place)
    shown, prefix = (f"{place}/", f"{place}/") if place else ("it", "")
    seen(base)
    classes = _class_folders(base)
    if not classes:
        raise Refusal(
            f"data.root={root}: {shown} has no class folders; it needs {prefix}<class>/<image>; set data.root"
        )
    paths: list[bytes] = []
    labels: list[int] = []
    sizes: list[int] = []
    digest = hashlib.sha256(folder.encode(errors="surrogateescape"))
    empty = []
    for label, name in enumerate(classes):
        found = sorted(_images(os.path.join(base, name), f"{prefix}{name}", set(), seen))
        if not found:
            empty.append(name)
        paths += [os.fsencode(path) for path, _, _ in found]
        sizes += [size for _, size, _ in found]
        labels += [label] * len(found)
        digest.update(repr(found).encode(errors="surrogateescape"))
    if empty and not place:  # a single folder may hold folders that are no classes, such as results or notes
        classes = [name for name in classes if name not in empty]
        numbers = np.unique(labels, return_inverse=True)[1].tolist() if labels else []
        labels = numbers
    if (empty and place) or not paths:
        raise Refusal(
            f"data.root={root}: {prefix}{one_line(empty[0])} holds no image{_more(len(empty))}"
            f" (extensions read: {' '.join(EXTENSIONS)}); remove the folder or set data.root"
        )
    source = ImageFiles(folder, paths, sizes, digest.digest())
    return ImagePart(part, classes, np.array(labels, dtype=np.int64), np.arange(len(paths)), source)


def _images(
    folder: str, prefix: str, above: set[tuple[int, int]], seen: Callable[[str], None]
) -> Iterator[tuple[str, int, int]]:
    """Path, size in bytes and modification time of each image below a folder.

    Each folder is entered only once, because symbolic links may form a circle.
    """
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:
        return
    above.add((here.st_dev, here.st_ino))
    seen(folder)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path = f"{prefix}/{entry.name}"
            if _is_folder(entry):
                yield from _images(entry.path, path, above, seen)
            elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                try:
                    there = os.stat(entry.path)
                    yield path, there.st_size, there.st_mtime_ns
                except OSError:  # a broken link, which is reported when the image is read
                    yield path, 0, 0


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _more(count: int) -> str:
    return f" (nor do {count - 1} others)" if count > 1 else ""


# ----------------------------------------------------------------------------------------------------------- shards


def _shards(folder: Path, suffix: str, whole: bool) -> dict[str, list[Path]]:
    """The shard files of each part: named after it, or in a folder that is, or in data/ or default/ as on the hub."""
    found: dict[str, list[Path]] = {}
    for place in (folder, folder / "data", folder / "default"):
        if not place.is_dir():
            continue
        for path in sorted(place.iterdir()):
            if path.suffix.lower() == suffix and path.is_file() and (part := _part_of(path.stem)):
                found.setdefault(part, []).append(path)
            elif path.is_dir() and (part := _part_of(path.name)):
                inside = [one for one in sorted(path.iterdir()) if one.suffix.lower() == suffix and one.is_file()]
                found.setdefault(part, []).extend(inside)
        found = {part: paths for part, paths in found.items() if paths}
        if not found and whole and (loose := sorted(place.glob(f"*{suffix}"))):
            found = {"all": loose}
        if found:
            return found
    return found


def _part_of(stem: str) -> str | None:
    """The part that a file name begins with: train for train-00000-of-00002 and for imagenet1k-train-0000."""
    words = re.split(r"[-_.\s]+", stem.lower())
    return next((part for part, names in PARTS.items() if any(name in words for name in names)), None)


def _read_shards(
    root: str, shards: dict[str, list[Path]], reader: Callable[[str, list[Path]], Shards]
) -> dict[str, ImagePart]:
    read = {part: reader(root, paths) for part, paths in shards.items()}
    # The hub's test parts are often unlabelled: every label is -1.
    blind = [part for part, one in read.items() if one.numbers is not None and (one.numbers < 0).all()]
    read = {part: one for part, one in read.items() if part not in blind}
    if not read:
        raise Refusal(f"data.root={root}: no part has labels; set data.root")
    for part, one in read.items():
        if one.numbers is not None and (one.numbers < 0).any():
            raise Refusal(
                f"data.root={root}: {int((one.numbers < 0).sum())} images of {part} have no label; set data.root"
            )
    numbered = [one.numbers is not None for one in read.values()]
    if any(numbered) and not all(numbered):
        raise Refusal(f"data.root={root}: some parts have numbers for labels and others names; set data.root")
    count = max((int(one.numbers.max()) + 1 for one in read.values() if one.numbers is not None), default=0)
    found = {}
    for part, one in read.items():
        if one.numbers is not None:
            classes = one.names or [str(number) for number in range(count)]
            if len(classes) < count:
                raise Refusal(f"data.root={root}: {part} has labels beyond its {len(classes)} classes; set data.root")
            labels = one.numbers
        else:
            assert one.class_of is not None
            found_names, labels = np.unique(np.array(one.class_of, dtype=object), return_inverse=True)
            classes = [str(name) for name in found_names]
        found[part] = ImagePart(part, classes, labels.astype(np.int64), np.arange(len(labels)), one.source)
    return found


def check_same_classes(root: str, train: ImagePart, other: ImagePart) -> None:
    """Raises `Refusal` if one part has classes that the other lacks; the message names the first of them."""
    for have, lack in ((train, other), (other, train)):
        missing = sorted(set(have.classes) - set(lack.classes))
        if missing:
            names = one_line(", ".join(missing[:3])) + (", ..." if len(missing) > 3 else "")
            count = "a class" if len(missing) == 1 else f"{len(missing)} classes"
            raise Refusal(
                f"data.root={root}: {have.name}/ has {count} that {lack.name}/ lacks ({names});"
                " both must hold the same class folders; set data.root"
            )
