"""Which values each key allows by itself: choices and ranges, by dotted key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pdp.config.data_schema import DATA_SCHEMAS
from pdp.config.schema import DISTILL, PRUNE, TRACKERS, Config
from pdp.errors import Refusal
from pdp.patterns.options import SALIENCIES, TARGETS
from pdp.quantize.options import QUANTIZE, RANGES
from pdp.schedule.shapes import SCHEDULES
from pdp.wording import did_you_mean

MODELS = ("resnet18", "resnet34", "resnet50", "mobilenet_v1", "mobilenet_v2", "resnet20")
LANGUAGE_MODELS = (
    "bert_base",
    "bert_large",
    "distilbert",
    "bert_tiny",
    "bert_mini",
    "gpt2",
    "gpt2_medium",
    "gpt2_mini",
    "gpt2_tiny",
    "llama_tiny",
)
DATA = ("digits", "fashion_mnist", "cifar10", "imagenet", "image_folder")
TEXT_DATA = (
    "grammar_nli",
    "glue",
    "nli_tsv",
    "docstrings",
    "wikitext",
    "text",
    "wikitext_2_valid_trained",
    "hub_text",
    "table",
)
GLUE_TASKS = ("mnli", "qqp", "qnli", "sst2", "rte", "mrpc", "cola", "stsb", "wnli")
WIKITEXT = ("wikitext-2", "wikitext-103", "wikitext-2-raw", "wikitext-103-raw")
# For each reader of texts: the task that uses it, and the names that its data can have (empty: any).
TEXT_SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "grammar": ("text_classification", ("grammar_nli",)),
    "glue": ("text_classification", ("glue",)),
    "tsv": ("text_classification", ()),
    "table": ("text_classification", ()),
    "docstrings": ("language_modelling", ("docstrings",)),
    "wikitext": ("language_modelling", WIKITEXT),
    "files": ("language_modelling", ()),
    "hub": ("language_modelling", ()),
}

_ENUMERATIONS: dict[str, tuple[str, ...]] = {
    "model.task": tuple(DATA_SCHEMAS),
    "model.library": ("pdp", "timm", "transformers", "import"),
    "model.head": ("checkpoint", "new"),
    "data.protocol": ("lines", "huggingface"),
    "data.source": tuple(TEXT_SOURCES),
    "data.task": GLUE_TASKS,
    "data.unreadable": ("stop", "skip"),
    "data.decode": ("cpu", "gpu"),
    "recipe.optimizer": ("sgd", "adamw"),
    "recipe.lr_schedule": ("cosine", "linear", "constant", "steps"),
    "recipe.lr_unit": ("step", "epoch"),
    "recipe.augmentation": ("none", "pad_crop_flip", "random_resized_crop"),
    "recipe.on_nonfinite": ("stop", "skip"),
    "recipe.adapter": ("none", "lora"),
    "recipe.precision": ("fp32", "bf16", "fp16"),
    "recipe.sharding": ("none", "fsdp"),
    "schedule.name": SCHEDULES,
    "schedule.unit": ("epoch", "step"),
    "allocation.name": ("global", "uniform", "erk", "file"),
    "allocation.ends": ("pruned", "first_dense", "dense"),
    "prune.pattern": tuple(PRUNE),
    "prune.saliency": SALIENCIES,
    "prune.target": TARGETS,
    "quantize.name": tuple(QUANTIZE),
    "quantize.ranges": RANGES,
    "distill.name": tuple(DISTILL),
    "distill.cache": ("none", "disk"),
    "tracker.name": tuple(TRACKERS),
    "tracker.mode": ("auto", "online", "offline"),
    "start.mask": ("hold", "free", "first"),
    "device": ("auto", "cpu", "cuda"),
}

_Range = tuple[Callable[[Any], bool], str]
_AT_LEAST_1: _Range = (lambda value: value >= 1, "at least 1")
_AT_LEAST_0: _Range = (lambda value: 0 <= value < math.inf, "a finite number from 0 up")
_ABOVE_0: _Range = (lambda value: 0 < value < math.inf, "a finite number above 0")
_BELOW_1: _Range = (lambda value: 0 <= value < 1, "from 0 to below 1")
_RANGES: dict[str, _Range] = {
    "recipe.epochs": _AT_LEAST_0,
    "recipe.batch_size": _AT_LEAST_1,
    "recipe.accumulation": _AT_LEAST_1,
    "recipe.lr": _ABOVE_0,
    "recipe.lr_min": _AT_LEAST_0,
    "recipe.momentum": _BELOW_1,
    "recipe.weight_decay": _AT_LEAST_0,
    "recipe.label_smoothing": _BELOW_1,
    "recipe.adapter_rank": _AT_LEAST_1,
    "recipe.adapter_alpha": _ABOVE_0,
    "recipe.clip": _ABOVE_0,
    "recipe.ema": (lambda value: 0 < value < 1, "between 0 and 1"),
    "recipe.soft_every": _AT_LEAST_0,
    "recipe.checkpoint_minutes": _AT_LEAST_0,
    "recipe.history_steps": _AT_LEAST_0,
    "recipe.recalibrate_bn": _AT_LEAST_0,
    "data.validation": _BELOW_1,
    "data.workers": _AT_LEAST_0,
    "data.limit": _AT_LEAST_1,
    "data.image_size": _AT_LEAST_1,
    "data.max_length": (lambda value: value >= 8, "at least 8 tokens"),
    "data.context": (lambda value: value >= 2, "at least 2 tokens"),
    "data.stride": _AT_LEAST_1,
    "data.vocabulary": (lambda value: value >= 300, "at least 300: every byte has an entry"),
    "recipe.layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "model.smallest_input": _AT_LEAST_1,
    "distill.temperature": _ABOVE_0,
    "distill.weight": (lambda value: 0 <= value <= 1, "from 0 to 1: the teacher's share of the loss"),
    "distill.hidden": _AT_LEAST_0,
    "distill.attention": _AT_LEAST_0,
    "tracker.timeout": _ABOVE_0,
    "allocation.least_density": _BELOW_1,
    "schedule.rate": (lambda value: 0 < value <= 1, "above 0 and at most 1: the share of the target added per epoch"),
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
}


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key; None if this configuration has no such key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part, None)
    return node


def check_values(config: Config) -> None:
    """Raises `Refusal` for the first value that is not among its choices or is out of range."""
    for key, allowed in _ENUMERATIONS.items():
        value = value_of(config, key)
        if value is not None and value not in allowed:
            raise Refusal(f"{key}={value}: no such choice; {did_you_mean(value, allowed)}")
    for key, (holds, words) in _RANGES.items():
        value = value_of(config, key)
        if value is not None and not holds(value):
            raise Refusal(f"{key}={value} is out of range: give {key} {words}")
