"""Checks of the teacher's options, without data or torch, and the default weight of the teacher for each method."""

from __future__ import annotations

import os
from pathlib import Path

from pdp.config.schema import DISTILL, Config, TeacherConfig
from pdp.errors import Refusal
from pdp.runs.record import RECORD

HUB = "hub"
# According to a third party, the paper gives the teacher 0.95 of the loss for PDP and 0.75 for STR; other methods use
# our own value.
QUOTED_WEIGHTS = {"pdp": 0.95, "pdp_annealed": 0.95, "str": 0.75}
OUR_WEIGHT = 0.9


def own_weight(method: str) -> float:
    """The teacher's share of the loss if distill.weight is null."""
    return QUOTED_WEIGHTS.get(method, OUR_WEIGHT)


def weight_source(method: str, weight: float) -> str:
    """The source of a weight, in words."""
    if weight == QUOTED_WEIGHTS.get(method):
        return "the paper's for this method, as a third party quotes it"
    return "ours" if weight == own_weight(method) else "given"


def is_run(path: Path) -> bool:
    """Whether `path` is the directory of a run, finished or not."""
    return (path / "config.yaml").is_file()


def check_distill(config: Config) -> None:
    """Raises `Refusal` for a teacher that is impossible or would have no effect."""
    distill = config.distill
    if type(distill) is not DISTILL[distill.name]:
        raise Refusal(
            f"distill.name={distill.name} is not how a teacher is chosen: give distill=<name>, one of "
            f"{', '.join(DISTILL)}"
        )
    if not isinstance(distill, TeacherConfig):
        return
    if distill.weight == 0 and not (distill.hidden or distill.attention):
        raise Refusal(
            "distill.weight=0 with distill.hidden=0 and distill.attention=0 leaves the teacher without effect: "
            "raise one of them, or give distill=none"
        )
    if distill.cache == "disk":
        _check_cache(config, distill)
    if distill.teacher is not None and not _means_hub(distill.teacher):
        _check_path(distill.teacher)


def _check_cache(config: Config, distill: TeacherConfig) -> None:
    if config.recipe.augmentation != "none":
        raise Refusal(
            f"distill.cache=disk with recipe.augmentation={config.recipe.augmentation}, which shows the teacher other "
            "inputs in each epoch: give distill.cache=none or recipe.augmentation=none"
        )
    for key in ("hidden", "attention"):
        if getattr(distill, key):
            raise Refusal(
                f"distill.cache=disk with distill.{key}={getattr(distill, key)}: logits alone are cached, so give "
                f"distill.cache=none or distill.{key}=0"
            )


def _check_path(teacher: str) -> None:
    path = Path(teacher).expanduser()
    allowed = "give a finished run's directory, a file or folder of weights, hub, or null for this cell's dense run"
    if not teacher.strip() or not path.exists():
        raise Refusal(f"distill.teacher={teacher} does not exist: {allowed}")
    if not path.is_dir():
        return
    if is_run(path):
        for name in (RECORD, "model.safetensors"):
            if not (path / name).is_file():
                raise Refusal(f"distill.teacher={teacher} has no {name}, so that run is not finished: {allowed}")
    elif not (path / "config.json").is_file():
        seeds = sorted(child.name for child in path.glob("seed*") if is_run(child))
        hint = f"; it holds {', '.join(seeds)}: distill.teacher={path / seeds[0]}" if seeds else ""
        raise Refusal(
            f"distill.teacher={teacher} is neither a run's directory nor a folder of weights: {allowed}{hint}"
        )


def normalise_distill(config: Config) -> None:
    """Normalises the options: the weight as a number, the hub by its name, paths without ~."""
    distill = config.distill
    if not isinstance(distill, TeacherConfig):
        return
    if distill.weight is None:
        distill.weight = own_weight(config.method.name)
    if distill.teacher is not None:
        distill.teacher = HUB if _means_hub(distill.teacher) else os.path.expanduser(distill.teacher)


def _means_hub(teacher: str) -> bool:
    return teacher.lower() in (HUB, "true")
