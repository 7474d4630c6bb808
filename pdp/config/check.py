"""Checks a composed configuration, without data or torch; each refusal names the override to change."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence, Set
from typing import Any

from pdp.config.check_data import check_data, check_model
from pdp.config.check_effects import check_effects
from pdp.config.check_prune import check_prune, is_dense
from pdp.config.check_schedule import check_schedule
from pdp.config.check_sharding import check_sharding
from pdp.config.check_values import check_values
from pdp.config.distill import check_distill, normalise_distill
from pdp.config.groups import find_budget
from pdp.config.schema import (
    TRACKERS,
    AllocationConfig,
    Config,
    DistillConfig,
    PruneConfig,
    RecipeConfig,
    ScheduleConfig,
    TeacherConfig,
)
from pdp.errors import Refusal
from pdp.methods.options import AT_ONE_STROKE, UNDER_ADAPTERS, WITHOUT_TRAINING
from pdp.quantize.options import QUANTIZE, Int4wOptions
from pdp.ranks import process_count
from pdp.schedule.time import Time


def check(config: Config, typed: Set[str] = frozenset(), words: Sequence[str] = ()) -> None:
    """Raises `Refusal` for the first thing that makes the run impossible.

    `typed` are the keys given on the command line, `words` the overrides themselves.
    """
    check_values(config)
    check_model(config)
    check_data(config)
    _check_recipe(config)
    check_prune(config, typed)
    check_schedule(config, words)
    _check_quantize(config)
    check_distill(config)
    check_sharding(config)
    _check_tracker(config)
    check_effects(config, typed)
    if not config.output_dir.strip():
        raise Refusal("output_dir is empty: give output_dir=<folder>")


def normalise(config: Config, typed: Set[str] = frozenset()) -> None:
    """Normalises the configuration, so that equal meanings are spelled equally.

    This concerns options without effect in a dense run, and spellings of false, true and the home folder. `typed` are
    the keys given on the command line, which data.smallest_inputs leaves as they are.
    """
    if config.model.pretrained.lower() in ("false", "true"):
        config.model.pretrained = config.model.pretrained.lower()
    else:
        config.model.pretrained = os.path.expanduser(config.model.pretrained)
    if config.device == "gpu":
        config.device = "cuda"
    if config.data.root is not None:
        config.data.root = os.path.expanduser(config.data.root)
    for key in ("tokenizer", "train", "validation_file", "test"):
        if isinstance(path := getattr(config.data, key, None), str):
            setattr(config.data, key, os.path.expanduser(path))
    if config.data.smallest_inputs:
        _shrink(config, typed)
    if config.allocation.path is not None:
        config.allocation.path = find_budget(config.allocation.path)
    config.output_dir = os.path.expanduser(config.output_dir)
    normalise_distill(config)
    if is_dense(config):
        config.sparsity = None
        config.schedule = ScheduleConfig(name="linear")
        config.allocation = AllocationConfig(name="global")
        config.prune = PruneConfig(pattern="none")
    elif config.method.name == "held":
        config.schedule = ScheduleConfig(name="constant")
        config.allocation = AllocationConfig(name="global")
        config.sparsity = None if config.prune.pattern == "nm" else config.sparsity
    elif config.prune.pattern == "nm":
        config.sparsity = None
        config.allocation = AllocationConfig(name="global")
    elif config.allocation.name == "file":
        config.sparsity = None


_SMALL = {
    "bert": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2},
}


def _shrink(config: Config, typed: Set[str]) -> None:
    """For data.smallest_inputs: uses the smallest inputs, and leaves what was typed as it is.

    A small random model replaces weights from the hub, and a teacher that would have to be trained first is left out.
    """
    data: Any = config.data
    data.smallest_inputs = False
    if isinstance(config.distill, TeacherConfig) and not any(key.split(".")[0] == "distill" for key in typed):
        config.distill = DistillConfig()
    if config.model.task == "images":
        if "data.image_size" not in typed:
            data.image_size = config.model.smallest_input
        return
    if config.model.task == "text_classification":
        data.max_length = min(data.max_length, 32)
    else:
        data.context = min(data.context, 32)
        data.stride = None if data.stride is None else min(data.stride, data.context - 1)
    random = "model.pretrained" not in typed and config.start.run is None
    if config.model.pretrained == "true" and random and config.model.architecture in _SMALL:
        config.model.pretrained = "false"
        config.model.sizes = _SMALL[config.model.architecture] | config.model.sizes


def _check_recipe(config: Config) -> None:
    recipe = config.recipe
    if not recipe.epochs and config.method.name not in WITHOUT_TRAINING:
        raise Refusal(
            f"recipe.epochs=0 trains nothing, and method={config.method.name} prunes in training: give recipe.epochs "
            f"of at least 1, or a method that prunes a trained model as it is: {', '.join(AT_ONE_STROKE)}"
        )
    _check_adapter(config)
    if recipe.gradient_checkpointing and config.model.library != "transformers":
        raise Refusal(
            "recipe.gradient_checkpointing=true is for transformers (model=bert_base, gpt2, huggingface, ...): give "
            "recipe.gradient_checkpointing=false"
        )
    if isinstance(recipe.compile, str) and recipe.compile != "graphs":
        raise Refusal(f"recipe.compile={recipe.compile}: no such choice; known: false, true, graphs")
    processes = process_count()
    parts = processes * recipe.accumulation
    if recipe.batch_size % parts:
        raise Refusal(
            f"recipe.batch_size={recipe.batch_size} is not divisible by processes x recipe.accumulation = "
            f"{processes} x {recipe.accumulation}: change recipe.batch_size or recipe.accumulation"
        )
    if recipe.lr_drops and recipe.lr_schedule != "steps":
        raise Refusal(
            f"recipe.lr_drops has no meaning for recipe.lr_schedule={recipe.lr_schedule}: give recipe.lr_drops=[]"
        )
    if recipe.lr_schedule == "steps" and not recipe.lr_drops:
        raise Refusal(
            "recipe.lr_schedule=steps needs recipe.lr_drops: times at which the rate falls, such as [30ep,60ep]"
        )
    for drop in recipe.lr_drops:
        Time.parse(drop, "recipe.lr_drops")
    if recipe.lr_min > recipe.lr:
        raise Refusal(f"recipe.lr_min={recipe.lr_min} is above recipe.lr={recipe.lr}: lower recipe.lr_min")
    if recipe.nesterov and recipe.optimizer == "sgd" and recipe.momentum == 0:
        raise Refusal("recipe.nesterov=true needs momentum: give recipe.momentum above 0 or recipe.nesterov=false")
    if recipe.evaluate_every is not None and Time.parse(recipe.evaluate_every, "recipe.evaluate_every").value == 0:
        raise Refusal(
            f"recipe.evaluate_every={recipe.evaluate_every} is no time between two measurements: give one above 0, "
            "such as 0.1 (of the run), 2000it or 2ep, or recipe.evaluate_every=null for every epoch"
        )


def _check_adapter(config: Config) -> None:
    recipe, plain = config.recipe, RecipeConfig()
    if recipe.adapter == "none":
        for key in ("adapter_rank", "adapter_alpha", "adapter_targets"):
            if (value := getattr(recipe, key)) != getattr(plain, key):
                raise Refusal(f"recipe.{key}={value} has no effect without adapters: add recipe.adapter=lora")
        return
    if config.method.name not in UNDER_ADAPTERS:
        raise Refusal(
            f"recipe.adapter=lora trains under zeros that stay, and method={config.method.name} moves them: prune "
            f"first, then give from=<that run> (method=held), or a method of {', '.join(UNDER_ADAPTERS)}"
        )
    if not recipe.epochs:
        raise Refusal("recipe.adapter=lora has nothing to train with recipe.epochs=0: give recipe.epochs=1 or more")
    if config.quantize.name != "none":
        raise Refusal(
            f"quantize={config.quantize.name} is not known with recipe.adapter=lora: give quantize=none, or quantize a "
            "run that goes on from the merged one"
        )
    for key, value, allowed in (("ema", recipe.ema, None), ("compile", recipe.compile, False),
                                ("layer_decay", recipe.layer_decay, None)):  # fmt: skip
        if value != allowed:
            raise Refusal(
                f"recipe.{key}={value} is not known with recipe.adapter=lora: give recipe.{key}="
                f"{'false' if allowed is False else 'null'}"
            )


def _check_quantize(config: Config) -> None:
    quantize = config.quantize
    if type(quantize) is not QUANTIZE[quantize.name]:
        raise Refusal(
            f"quantize.name={quantize.name} is not how this is chosen: give quantize=<name>, one of "
            f"{', '.join(QUANTIZE)}"
        )
    quantize.check()
    if isinstance(quantize, Int4wOptions):
        time = Time.parse(quantize.start, "quantize.start")
        if time.unit == "ep" and time.value >= config.recipe.epochs:
            raise Refusal(
                f"quantize.start={quantize.start} leaves nothing of a run of {config.recipe.epochs} epochs to train "
                "with quantized numbers: give an earlier time, such as quantize.start=0.7"
            )
        if any(not pattern.strip() for pattern in quantize.exclude):
            raise Refusal(
                "quantize.exclude has an empty pattern: give names or fnmatch patterns, such as quantize.exclude=[fc]"
            )


def _check_tracker(config: Config) -> None:
    name = config.tracker.name
    if type(config.tracker) is not TRACKERS[name]:
        raise Refusal(
            f"tracker.name={name} is not how a tracker is chosen: give tracker=<name>, one of {', '.join(TRACKERS)}"
        )
    if name == "none":
        return
    found = importlib.util.find_spec(name)
    # A mere folder with the package's name, such as the one W&B leaves in its working directory, has a spec without an
    # origin.
    if found is None or found.origin is None:
        raise Refusal(f"tracker={name} is not installed: pip install {name}, or give tracker=none")
