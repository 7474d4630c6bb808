"""ImageNet or the user's own images under data.root: which parts serve to train, validate and test."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pdp.errors import Refusal
from pdp.tasks import image_data as memory
from pdp.tasks.image_layouts import check_same_classes, find_parts
from pdp.tasks.image_parts import ImagePart, inspect, refuse_damaged
from pdp.tasks.listing import read_listing
from pdp.tasks.sampling import keeping_split
from pdp.wording import one_line

TEST_SHARE = 0.2  # share of the images that becomes the test set if they come without a split
_SHOWN = 10  # most class names shown in the banner


@dataclass
class FoundImages:
    """The parts, their classes, their layout in words, the sha256 of their content, and the unreadable images."""

    train: ImagePart | None
    validation: ImagePart | None
    test: ImagePart
    classes: list[str]
    layout: str
    content: bytes
    damaged: int


def read_images(data: Any, otherwise: str | None = None) -> FoundImages:
    """Finds the images that `data` names; raises `Refusal`. Without a training part they can still be evaluated.

    `otherwise` is the folder for the cached listing of a large folder if the user's cache is not writable.
    """
    imagenet, root = data.name == "imagenet", data.root
    layout = "train/<class>/ and val/<class>/" + ("" if imagenet else " (or test/<class>/), or a folder per class")
    if root is None:
        variable = " or IMAGENET_DIR" if imagenet else ""
        raise Refusal(f"data.root{variable} is not set; data={data.name} needs data.root=<folder of {layout}>")
    memory.check_root(root, layout)
    found, words = find_parts(root, not imagenet, functools.partial(read_listing, otherwise=otherwise))
    if (whole := found.pop("all", None)) is not None:
        found = _hold_out(root, whole)
        words += f", {TEST_SHARE * 100:g} % of each class held out as the test set by a fixed split"
    train, val = found.get("train"), found.get("val")
    test = None if imagenet else found.get("test")  # ImageNet's test part has no labels
    test, val = (test, val) if test is not None else (val, None)
    if test is None:
        cure = ""
        if train is not None and not imagenet and words == "folders":
            cure = f"; to hold out a share of train/ give data.root={os.path.join(root, 'train')}"
        raise Refusal(f"data.root={root} has nothing to test on; it must hold {layout}{cure}; set data.root")
    parts = [part for part in (train, val, test) if part is not None]
    for part in parts[1:]:
        check_same_classes(root, parts[0], part)
    content, damaged = inspect(parts)
    if data.unreadable != "skip":
        refuse_damaged(root, parts, damaged)
    return FoundImages(train, val, test, parts[0].classes, words, content, sum(map(len, damaged.values())))


def _hold_out(root: str, whole: ImagePart) -> dict[str, ImagePart]:
    kept, held = keeping_split(whole.labels, TEST_SHARE, salt=1)
    if not (len(kept) and len(held)):
        raise Refusal(
            f"data.root={root} holds {len(whole)} image(s), too few to hold out a test set: give more, or "
            "train/<class>/ and test/<class>/; set data.root"
        )
    return {"train": replace(whole.subset(kept), name="train"), "test": replace(whole.subset(held), name="test")}


def say_classes(names: Sequence[str]) -> str:
    """The class names for the banner, for example 'cat, dog'; only the first ones if there are many."""
    return ", ".join([one_line(name) for name in names[:_SHOWN]] + ["..."] * (len(names) > _SHOWN))
