"""Checks of a composed configuration that need neither data nor torch; each refusal names the override to change."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from pdp.config.schema import (
    PRUNE,
    TRACKERS,
    AllocationConfig,
    Config,
    NmPruneConfig,
    PruneConfig,
    ScheduleConfig,
    pattern_options,
)
from pdp.config.suggest import did_you_mean
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS, check_options
from pdp.patterns.options import PATTERNS, SALIENCIES, TARGETS
from pdp.schedules import AUTO_EPOCHS, DEFAULT_RAMP
from pdp.time import Time

MODELS = ("resnet18", "resnet34", "resnet50", "mobilenet_v1", "mobilenet_v2", "resnet20")
DATA = ("digits", "fashion_mnist", "cifar10", "imagenet", "image_folder")
NEED_ROOT = ("imagenet", "image_folder")

_ENUMERATIONS: dict[str, tuple[str, ...]] = {
    "model.task": ("images",),
    "model.library": ("pdp", "timm"),
    "data.name": DATA,
    "data.unreadable": ("stop", "skip"),
    "recipe.optimizer": ("sgd", "adamw"),
    "recipe.lr_schedule": ("cosine", "linear", "constant"),
    "recipe.lr_unit": ("step", "epoch"),
    "recipe.augmentation": ("none", "pad_crop_flip", "random_resized_crop"),
    "recipe.precision": ("fp32", "bf16", "fp16"),
    "schedule.name": ("linear", "cubic", "constant", "oneshot"),
    "schedule.unit": ("epoch", "step"),
    "allocation.name": ("global", "uniform", "erk", "file"),
    "prune.pattern": tuple(PRUNE),
    "prune.saliency": SALIENCIES,
    "prune.target": TARGETS,
    "distill.name": ("none",),
    "tracker.name": tuple(TRACKERS),
    "tracker.mode": ("auto", "online", "offline"),
    "device": ("auto", "cpu", "cuda"),
}

_Range = tuple[Callable[[Any], bool], str]
_AT_LEAST_1: _Range = (lambda value: value >= 1, "at least 1")
_AT_LEAST_0: _Range = (lambda value: 0 <= value < math.inf, "a finite number from 0 up")
_ABOVE_0: _Range = (lambda value: 0 < value < math.inf, "a finite number above 0")
_BELOW_1: _Range = (lambda value: 0 <= value < 1, "from 0 to below 1")
_RANGES: dict[str, _Range] = {
    "recipe.epochs": _AT_LEAST_1,
    "recipe.batch_size": _AT_LEAST_1,
    "recipe.accumulation": _AT_LEAST_1,
    "recipe.lr": _ABOVE_0,
    "recipe.lr_min": _AT_LEAST_0,
    "recipe.momentum": _BELOW_1,
    "recipe.weight_decay": _AT_LEAST_0,
    "recipe.label_smoothing": _BELOW_1,
    "recipe.clip": _ABOVE_0,
    "recipe.ema": (lambda value: 0 < value < 1, "between 0 and 1"),
    "recipe.soft_every": _AT_LEAST_0,
    "recipe.recalibrate_bn": _AT_LEAST_0,
    "data.validation": _BELOW_1,
    "data.workers": _AT_LEAST_0,
    "data.limit": _AT_LEAST_1,
    "data.image_size": _AT_LEAST_1,
    "model.smallest_input": _AT_LEAST_1,
    "tracker.timeout": _ABOVE_0,
    "schedule.rate": (lambda value: 0 < value <= 1, "above 0 and at most 1: the share of the target added per epoch"),
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
}


def value_of(config: Config, key: str) -> Any:
    """The value under a dotted key; None where this configuration has no such key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part, None)
    return node


def check(config: Config, typed: Set[str] = frozenset()) -> None:
    """Raises `Refusal` for the first thing that cannot be run; `typed` are the keys given on the command line."""
    for key, allowed in _ENUMERATIONS.items():
        value = value_of(config, key)
        if value is not None and value not in allowed:
            raise Refusal(f"{key}={value}: no such choice; {did_you_mean(value, allowed)}")
    for key, (holds, words) in _RANGES.items():
        value = value_of(config, key)
        if value is not None and not holds(value):
            raise Refusal(f"{key}={value} is out of range: give {key} {words}")
    _check_model(config)
    _check_data(config)
    _check_recipe(config)
    _check_method(config)
    _check_pattern(config, typed)
    _check_sparsity(config, typed)
    _check_allocation(config, typed)
    _check_schedule(config)
    _check_tracker(config)
    for pattern in config.prune.exclude:
        if not pattern.strip():
            raise Refusal(
                "prune.exclude has an empty pattern: give names or fnmatch patterns, prune.exclude=[fc,'layer1.*']"
            )
    if not config.output_dir.strip():
        raise Refusal("output_dir is empty: give output_dir=<folder>")


def is_dense(config: Config) -> bool:
    """Whether nothing is pruned: method=dense, of which prune=none is another spelling."""
    return config.method.name == "dense"


def normalise(config: Config) -> None:
    """Writes one meaning in one way: what has no effect on a dense run, and spellings of false, true and home."""
    if config.model.pretrained.lower() in ("false", "true"):
        config.model.pretrained = config.model.pretrained.lower()
    else:
        config.model.pretrained = os.path.expanduser(config.model.pretrained)
    if config.data.root is not None:
        config.data.root = os.path.expanduser(config.data.root)
    if config.allocation.path is not None:
        config.allocation.path = os.path.expanduser(config.allocation.path)
    config.output_dir = os.path.expanduser(config.output_dir)
    if is_dense(config):
        config.sparsity = None
        config.schedule = ScheduleConfig(name="linear")
        config.allocation = AllocationConfig(name="global")
        config.prune = PruneConfig(pattern="none")
    elif config.prune.pattern == "nm":
        config.sparsity = None
        config.allocation = AllocationConfig(name="global")
    elif config.allocation.name == "file":
        config.sparsity = None


def _check_model(config: Config) -> None:
    model = config.model
    if model.library == "pdp" and model.name not in MODELS:
        raise Refusal(f"model.name={model.name}: no such model; {did_you_mean(model.name, MODELS)}; or model=timm")
    if not model.name.strip():
        raise Refusal("model.name is empty: give model.name=<the name of a model>")
    pretrained = model.pretrained
    if pretrained.lower() not in ("false", "true") and not Path(pretrained).expanduser().is_file():
        raise Refusal(
            f"model.pretrained={pretrained} is no file: give false, true (the hub's weights) or a file that exists"
        )


def _check_data(config: Config) -> None:
    data = config.data
    if data.name == "digits" and data.root:
        raise Refusal(
            "data.root has no meaning for data=digits, which come with scikit-learn: drop it or name other data="
        )
    if data.name in NEED_ROOT and not data.root and not (config.dry_run or data.noise_if_absent):
        environment = ", or set IMAGENET_DIR" if data.name == "imagenet" else ""
        raise Refusal(f"data={data.name} needs data.root: give data.root=<folder with train/ and val/>{environment}")


def _check_recipe(config: Config) -> None:
    recipe = config.recipe
    processes = int(os.environ.get("WORLD_SIZE") or 1)
    parts = processes * recipe.accumulation
    if recipe.batch_size % parts:
        raise Refusal(
            f"recipe.batch_size={recipe.batch_size} is not divisible by processes x recipe.accumulation = "
            f"{processes} x {recipe.accumulation}: change recipe.batch_size or recipe.accumulation"
        )
    if recipe.lr_min > recipe.lr:
        raise Refusal(f"recipe.lr_min={recipe.lr_min} is above recipe.lr={recipe.lr}: lower recipe.lr_min")
    if recipe.nesterov and recipe.optimizer == "sgd" and recipe.momentum == 0:
        raise Refusal("recipe.nesterov=true needs momentum: give recipe.momentum above 0 or recipe.nesterov=false")
    warmup = Time.parse(recipe.lr_warmup, "recipe.lr_warmup")
    if warmup.unit == "ep" and warmup.value > recipe.epochs:
        raise Refusal(
            f"recipe.lr_warmup={recipe.lr_warmup} is longer than the run's recipe.epochs={recipe.epochs}: shorten "
            "recipe.lr_warmup or raise recipe.epochs"
        )


def _check_method(config: Config) -> None:
    name = config.method.name
    if name not in OPTIONS or type(config.method) is not OPTIONS[name]:
        raise Refusal(
            f"method.name={name} is not how a method is chosen: give method=<name>, one of {', '.join(OPTIONS)}"
        )
    check_options(config.method)
    if config.prune.pattern == "none" and not is_dense(config):
        raise Refusal(f"prune=none prunes nothing, so method={name} has no work: give method=dense, or prune=random")


def _check_pattern(config: Config, typed: Set[str]) -> None:
    prune = config.prune
    if type(prune) is not PRUNE[prune.pattern]:
        raise Refusal(
            f"prune.pattern={prune.pattern} is not how a pattern is chosen: give prune=<name>, one of "
            f"{', '.join(PRUNE)}"
        )
    mode = getattr(config.method, "temperature_mode", None)
    if prune.pattern == "channel" and mode == "auto" and "method.temperature" in typed:
        raise Refusal(
            "method.temperature has no effect with prune=channel, whose temperature is relative: add "
            "method.temperature_mode=absolute, or give method.kappa"
        )
    if mode == "relative" and "method.temperature" in typed:
        raise Refusal("method.temperature has no effect with method.temperature_mode=relative: give method.kappa")
    if prune.pattern in PATTERNS:
        PATTERNS[prune.pattern](**pattern_options(prune)).check()


def implied_sparsity(config: Config) -> float | None:
    """The sparsity that the pattern itself says: 1 - N/M of the layers it prunes."""
    prune = config.prune
    return 1 - prune.n / prune.m if isinstance(prune, NmPruneConfig) else None


def _check_sparsity(config: Config, typed: Set[str]) -> None:
    sparsity = config.sparsity
    if sparsity is not None and not 0 <= sparsity < 1:
        hint = f"; did you mean {round(sparsity / 100, 10)!r}?" if 2 <= sparsity < 100 else ""
        raise Refusal(f"sparsity={sparsity} is not a fraction from 0 to below 1{hint}")
    if is_dense(config):
        if sparsity and "sparsity" in typed:
            raise Refusal(
                f"sparsity={sparsity} with {'prune=none' if config.prune.pattern == 'none' else 'method=dense'}, which "
                "prunes nothing: drop sparsity, or name a method that prunes, such as method=pdp"
            )
    elif (implied := implied_sparsity(config)) is not None:
        if sparsity is not None and abs(sparsity - implied) > 1e-9 and "sparsity" in typed:
            n, m = config.prune.n, config.prune.m  # type: ignore[attr-defined]
            raise Refusal(
                f"sparsity={sparsity} contradicts prune=nm prune.n={n} prune.m={m}, which is {implied:.10g}: drop "
                "sparsity, or change prune.n or prune.m"
            )
    elif config.allocation.name == "file":
        if sparsity is not None and "sparsity" in typed:
            raise Refusal(
                f"sparsity={sparsity} with allocation=file, whose budgets decide it: drop sparsity, or give another "
                "allocation="
            )
    elif sparsity is None:
        raise Refusal(
            "sparsity must be given: sparsity=<fraction of the weights to prune>, such as 0.866; or prune=none"
        )


def _check_allocation(config: Config, typed: Set[str]) -> None:
    name, path = config.allocation.name, config.allocation.path
    if is_dense(config):
        return
    if config.prune.pattern == "nm":
        for key in ("allocation", "allocation.path"):
            if key in typed:
                raise Refusal(f"{key} has no meaning for prune=nm, which prunes every layer alike: drop {key}")
        return
    if name == "erk" and config.prune.pattern == "channel":
        raise Refusal(
            "allocation=erk is a formula for single weights: give allocation=global or uniform, or prune=random"
        )
    if name != "file" and path is not None:
        raise Refusal(
            f"allocation.path={path} has no meaning for allocation={name}: add allocation=file or drop the path"
        )
    if name == "file":
        if not path:
            raise Refusal("allocation=file needs allocation.path: a CSV of layer,share or the directory of another run")
        if not Path(path).expanduser().exists():
            raise Refusal(f"allocation.path={path} does not exist: give a CSV of layer,share or a run's directory")


def _check_schedule(config: Config) -> None:
    schedule, epochs = config.schedule, config.recipe.epochs
    warmup = None if schedule.warmup == "auto" else Time.parse(schedule.warmup, "schedule.warmup")
    ramp = None if schedule.ramp is None else Time.parse(schedule.ramp, "schedule.ramp")
    if ramp is not None and schedule.rate is not None:
        raise Refusal(
            f"schedule.ramp={schedule.ramp} and schedule.rate={schedule.rate} are two spellings of one thing: set "
            "schedule.ramp=null or schedule.rate=null"
        )
    if is_dense(config) or schedule.name == "constant":
        return
    start, length = _start(warmup, schedule, epochs), _length(ramp, schedule, epochs)
    if start is None or length is None:
        return  # in steps: known when the data are
    if start + length > epochs + 1e-9:
        spelling = "schedule.rate" if schedule.rate is not None else "schedule.ramp"
        raise Refusal(
            f"the ramp does not fit: schedule.warmup={schedule.warmup} ({start:g} epochs) and "
            + ("the cut itself (1 epoch)" if schedule.name == "oneshot" else f"{spelling} ({length:g} epochs)")
            + f" are more than recipe.epochs={epochs}: change schedule.warmup, {spelling} or recipe.epochs"
        )


def _start(warmup: Time | None, schedule: ScheduleConfig, epochs: int) -> float | None:
    """Epochs before the ramp, at the earliest; None where only the number of steps per epoch would tell."""
    if warmup is None:
        return AUTO_EPOCHS
    if warmup.unit == "it":
        return None
    if schedule.unit == "epoch":
        return warmup.epochs(epochs)
    return warmup.value if warmup.unit == "ep" else warmup.value * epochs


def _length(ramp: Time | None, schedule: ScheduleConfig, epochs: int) -> float | None:
    """Epochs of the ramp; None where only the number of steps per epoch would tell."""
    whole = schedule.unit == "epoch"
    if schedule.name == "oneshot":
        return 1 if whole else 0
    if schedule.rate is not None:
        return math.ceil(1 / schedule.rate - 1e-9) if whole else 1 / schedule.rate
    ramp = ramp or DEFAULT_RAMP
    if ramp.unit == "it":
        return None
    if whole:
        return max(1, ramp.epochs(epochs))
    return ramp.value if ramp.unit == "ep" else ramp.value * epochs


def _check_tracker(config: Config) -> None:
    name = config.tracker.name
    if type(config.tracker) is not TRACKERS[name]:
        raise Refusal(
            f"tracker.name={name} is not how a tracker is chosen: give tracker=<name>, one of {', '.join(TRACKERS)}"
        )
    if name == "none":
        return
    found = importlib.util.find_spec(name)
    # A mere folder of that name, such as W&B leaves where it runs, has a spec without an origin.
    if found is None or found.origin is None:
        raise Refusal(f"tracker={name} is not installed: pip install {name}, or give tracker=none")
