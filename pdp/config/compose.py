"""Composes overrides and the files in conf/ to one checked configuration, by Hydra."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pdp.config import arguments
from pdp.config.arguments import Argument
from pdp.config.check import check, normalise
from pdp.config.data_schema import DATA_SCHEMAS
from pdp.config.groups import CONF, GROUPS, choices
from pdp.config.schema import DISTILL, PRUNE, TRACKERS, Config, TeacherConfig
from pdp.config.start import check_start, read_start
from pdp.config.types import wrong_type
from pdp.errors import Refusal
from pdp.methods.options import OPTIONS
from pdp.quantize.options import QUANTIZE, Int8Options
from pdp.wording import did_you_mean, nearest, one_line

VERSION_BASE = "1.3"
DEFAULT_DATA = {
    "text_classification": "grammar_nli",
    "language_modelling": "docstrings",
}  # conf/config.yaml has that of images
_FAILURES = (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError, AttributeError, KeyError)


def register_schemas() -> None:
    """Registers the dataclasses with Hydra under the names by which the files in conf/ include them."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    for task, schema in DATA_SCHEMAS.items():
        store.store(group="schema/data", name=task, node=schema)
    for method, options in OPTIONS.items():
        store.store(group="schema/method", name=method, node=options)
    for pattern, prune in PRUNE.items():
        store.store(group="schema/prune", name=pattern, node=prune)
    for name, options_of_quantize in QUANTIZE.items():
        store.store(group="schema/quantize", name=name, node=options_of_quantize)
    for distill, options_of_distill in DISTILL.items():
        store.store(group="schema/distill", name=distill, node=options_of_distill)
    for tracker, options_of_tracker in TRACKERS.items():
        store.store(group="schema/tracker", name=tracker, node=options_of_tracker)


def compose(overrides: Sequence[str]) -> Config:
    """The checked configuration of a training run, as nested plain dataclasses; raises `Refusal`."""
    return build(arguments.parse(overrides))


def build(typed: Sequence[Argument]) -> Config:
    """Like `compose`, from arguments that are already parsed."""
    keys = frozenset(argument.key for argument in typed)
    tree, _, names_data = compose_tree(typed)
    try:
        _refuse_missing(tree)
        config = cast(Config, OmegaConf.to_object(tree))
    except Refusal:
        raise
    except _FAILURES as error:
        raise Refusal(f"the configuration cannot be resolved: {one_line(error)}") from error
    _refuse_numbers_for_booleans(typed, tree)
    config.data.unasked = not names_data
    if config.data.name == "imagenet" and config.data.root is None:
        config.data.root = arguments.imagenet_dir()
    check_start(config, keys)
    check(config, keys, [argument.text for argument in typed])
    normalise(config, keys)
    return config


@contextmanager
def hydra_loader() -> Iterator[ConfigLoader]:
    """While this context is open, Hydra is initialised for conf/; any earlier initialisation is restored afterwards."""
    register_schemas()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base=VERSION_BASE, job_name="pdp"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = outer


def compose_tree(typed: Sequence[Argument]) -> tuple[DictConfig, list[str], bool]:
    """The composed tree, with known keys only; the overrides that it came from; and whether the data was named."""
    start = read_start(typed)
    typed = start.complete(typed) if start else typed
    lines = arguments.prepare(typed)
    try:
        names_data, task = _chosen(tuple(arguments.prepare(_choosing(typed))))
        if default := DEFAULT_DATA.get(task):
            lines = [*lines, f"data={default}"]
        elif not names_data and _names_imagenet_root(typed):
            lines, names_data = [*lines, "data=imagenet"], True
        tree = _composed(lines)
        if _starts_random_on_a_table(typed, tree):
            lines = [*lines, "recipe=own_texts"]
            tree = _composed(lines)
    except MissingConfigException as error:
        raise _unknown_choice(typed, error) from error
    except _FAILURES as error:
        raise _wrong_value(typed) or Refusal(f"the configuration cannot be composed: {one_line(error)}") from error
    _compare_with_schema(tree)
    if start:
        start.fill(tree, typed)
    _fill_task(tree)
    return tree, lines, names_data


def _composed(lines: Sequence[str]) -> DictConfig:
    """Composes by Hydra; the files are composed only once for all cells of a sweep that choose the same ones."""
    values = [line for line in lines if line.startswith("++")]
    tree = copy.deepcopy(_composed_files(tuple(line for line in lines if not line.startswith("++"))))
    for override in arguments.parse_overrides(values):
        OmegaConf.update(tree, override.key_or_group, override.value(), merge=True, force_add=True)
    return tree


@lru_cache(maxsize=128)
def _composed_files(lines: tuple[str, ...]) -> DictConfig:
    with hydra_loader():
        return hydra_compose("config", list(lines))


def _starts_random_on_a_table(typed: Sequence[Argument], tree: DictConfig) -> bool:
    """Whether a user's texts meet random weights and no recipe was named: the recipe for fine-tuning would not do."""
    if any(argument.key in ("recipe", "experiment") for argument in typed):
        return False
    data, model = tree.get("data", None), tree.get("model", None)
    if data is None or model is None or data.get("source", None) != "table":
        return False
    return str(model.get("pretrained", "")).lower() == "false"


def _choosing(typed: Sequence[Argument]) -> list[Argument]:
    """The arguments that determine which files are composed, and which task a model has."""
    return [argument for argument in typed if argument.is_group or argument.is_hydra or argument.key == "model.task"]


@lru_cache(maxsize=1024)
def _chosen(lines: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the data was named, and if not, the model's task; cached, because cells of a sweep share their files."""
    with hydra_loader() as loader:
        # Hydra's defaults list shows whether the command line or any chosen file overrides the group.
        defaults = loader.compute_defaults_list("config", list(lines), RunMode.RUN)
        if "data" in defaults.overrides.override_choices:
            return True, ""
        return False, _task_of_model(hydra_compose("config", list(lines)))


def _task_of_model(tree: DictConfig) -> str:
    """The task of the chosen model; a transformer without a task classifies text."""
    model = tree.get("model", None)
    if model is None or OmegaConf.is_missing(model, "library"):
        return ""
    if OmegaConf.is_missing(model, "task"):
        return "text_classification" if model.library == "transformers" else ""
    return str(model.task)


def _fill_task(tree: DictConfig) -> None:
    """Gives a model without a task that of the data."""
    if OmegaConf.is_missing(tree, "model") or OmegaConf.is_missing(tree, "data"):
        return
    if OmegaConf.is_missing(tree.model, "task"):
        kind = OmegaConf.get_type(tree.data)
        tree.model.task = next(task for task, schema in DATA_SCHEMAS.items() if schema is kind)


def _names_imagenet_root(typed: Sequence[Argument]) -> bool:
    return bool(arguments.imagenet_dir()) or any(item.key == "data.root" and item.value for item in typed)


def _unknown_choice(typed: Sequence[Argument], error: MissingConfigException) -> Refusal:
    missing = str(error.missing_cfg_file or "")
    for argument in typed:
        if argument.is_group and missing == f"{argument.key}/{argument.value}":
            known = {*choices(argument.key), *(error.options or [])}
            own = "; a model of your own is model=<module>.<class or function>" if argument.key == "model" else ""
            return Refusal(f"{argument.text}: no such {argument.key}; {did_you_mean(str(argument.value), known)}{own}")
    return Refusal(f"the configuration cannot be composed: {one_line(str(error).split('Config search path')[0])}")


def _wrong_value(typed: Sequence[Argument]) -> Refusal | None:
    """Finds the override whose value its key cannot hold, by applying each one alone to the tree of the groups."""
    groups = [argument for argument in typed if argument.is_group or argument.is_hydra]
    try:
        with hydra_loader():
            tree = hydra_compose("config", arguments.prepare(groups))
    except _FAILURES:
        return None
    for argument in typed:
        if not (argument.is_group or argument.is_hydra):
            try:
                OmegaConf.update(tree, argument.key, argument.value, merge=True, force_add=True)
                _compare_with_schema(tree)
            except Refusal as refusal:
                return refusal
            except _FAILURES:
                return wrong_type(tree, argument.key, argument.text)
    return None


def _compare_with_schema(tree: DictConfig) -> None:
    """Refuses keys that no dataclass has: a plus sign, or a file without a schema, bypasses Hydra's own check."""
    for path, node in _nodes(tree, ""):
        fields = _field_names(node)
        for key in node:
            if key not in fields:
                raise _unknown_key(path, str(key), fields, tree)


def _nodes(node: DictConfig, path: str) -> Iterator[tuple[str, DictConfig]]:
    kind = OmegaConf.get_type(node)
    if kind is None or not dataclasses.is_dataclass(kind):
        return
    yield path, node
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from _nodes(child, f"{path}{key!s}.")


def _unknown_key(path: str, key: str, fields: set[str], tree: DictConfig) -> Refusal:
    node = path.rstrip(".")
    if not path:
        known = {*fields, *GROUPS}
        elsewhere = [where + key for where, other in _nodes(tree, "") if where and key in _field_names(other)]
        if elsewhere and not nearest(key, known):
            return Refusal(f"{key}: no such key or group; did you mean {' or '.join(elsewhere)}?")
        return Refusal(f"{key}: no such key or group; {did_you_mean(key, known)}")
    owner = (
        f"{node}={tree[node].name}"
        if node in ("method", "data", "distill", "quantize", "tracker") and not OmegaConf.is_missing(tree[node], "name")
        else node
    )
    if owner == "distill=none" and nearest(key, {field.name for field in dataclasses.fields(TeacherConfig)}):
        return Refusal(f"{path}{key}: {owner} has no such key; add distill=teacher, or drop {path}{key}")
    if owner == "quantize=none" and nearest(key, {field.name for field in dataclasses.fields(Int8Options)}):
        return Refusal(f"{path}{key}: {owner} has no such key; add quantize=int8 or int4w, or drop {path}{key}")
    return Refusal(f"{path}{key}: {owner} has no such key; {did_you_mean(key, fields)}")


def _field_names(node: DictConfig) -> set[str]:
    return {field.name for field in dataclasses.fields(cast(Any, OmegaConf.get_type(node)))}


def _refuse_numbers_for_booleans(typed: Sequence[Argument], tree: DictConfig) -> None:
    # OmegaConf would accept any number as true.
    for argument in typed:
        if argument.is_group or argument.is_hydra or not isinstance(argument.value, int | float):
            continue
        if isinstance(OmegaConf.select(tree, argument.key), bool) and argument.value not in (0, 1):
            raise Refusal(f"{argument.text}: {argument.key} is true or false")


def _refuse_missing(tree: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(tree), key=lambda key: (key.count("."), key))
    if not missing:
        return
    key = "model" if "model" in missing else missing[0]
    if key in GROUPS:
        raise Refusal(f"{key} must be given: {key}=<name>, one of {', '.join(choices(key))}")
    if key == "model.name":
        raise Refusal(
            "model.name must be given with model=timm or model=huggingface: model.name=<the name of any timm model, or "
            "of any encoder or causal language model on the hub>; a model of your own is model=<module>.<class>"
        )
    raise Refusal(f"{key} must be given: {key}=<value>")
