"""The arguments of evaluate.py: the directory of a run, or a model and data as for train.py, never pruned."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdp.config import arguments
from pdp.config.arguments import Argument
from pdp.config.compose import build
from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.wording import did_you_mean

_OF_RUN: dict[str, tuple[tuple[type, ...], str]] = {
    "recipe.batch_size": ((int,), "a whole number of at least 1"),
    "device": ((str,), "auto, cpu, cuda or gpu"),
    "data.root": ((str,), "a folder"),
    "data.train": ((str,), "the file of the training rows"),
    "data.validation_file": ((str,), "a file of rows"),
    "data.test": ((str,), "a file of rows"),
    "data.workers": ((int,), "a whole number of at least 0"),
}
LM_EVAL = "lm_eval"
_FILES = ("config.yaml", "model.safetensors")
_PRUNING = ("sparsity", "prune", "method", "allocation", "schedule", "quantize", "distill", "start")


def take_lm_eval(typed: Sequence[Argument]) -> tuple[list[Argument], list[str]]:
    """The other arguments, and the tasks that lm_eval= names; raises `Refusal` where they cannot be run at all."""
    given = [argument for argument in typed if argument.key == LM_EVAL]
    rest = [argument for argument in typed if argument.key != LM_EVAL]
    if not given:
        return rest, []
    value = given[-1].value
    tasks = [str(one) for one in value] if isinstance(value, list) else [] if value is None else [str(value)]
    if not tasks or not all(one.strip() for one in tasks):
        raise Refusal(
            f"{given[-1].text} names no task: give lm_eval=[<task>,...], names that lm-eval knows or its task files"
        )
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise Refusal(f"{given[-1].text}: lm-eval is not installed: pip install lm-eval, or drop lm_eval=")
    for one in tasks:
        if one.endswith((".yaml", ".yml")) and not Path(one).expanduser().is_file():
            raise Refusal(f"lm_eval={one} is no file: give the name of a task, or a task's file")
    return rest, tasks


def of_run(typed: Sequence[Argument]) -> tuple[Path, dict[str, Any]]:
    """The run's directory and the other overrides by key; raises `Refusal`."""
    values: dict[str, Any] = {}
    for argument in typed:
        if argument.key != "run" and argument.key not in _OF_RUN:
            raise Refusal(
                f"{argument.text} cannot be changed for a finished run (run=...); {did_you_mean(argument.key, _OF_RUN)}"
            )
        values[argument.key] = argument.value
    run = values.pop("run")
    if run is None or isinstance(run, list | dict) or not str(run):
        raise Refusal(f"run={run} is no directory: give run=results/runs/<run>/seed<k>")
    directory = Path(str(run)).expanduser()
    if not directory.is_dir():
        raise Refusal(f"run={run} is no directory: give the directory of a finished run, results/runs/<run>/seed<k>")
    for name in _FILES:
        if not (directory / name).is_file():
            seeds = sorted(child.name for child in directory.glob("seed*") if child.is_dir())
            hint = f"; it holds {', '.join(seeds)}: give run={directory / seeds[0]}" if seeds else ""
            raise Refusal(f"run={run} has no {name}, so it is not a finished run's directory{hint}")
    for key, value in values.items():
        kinds, words = _OF_RUN[key]
        if type(value) not in kinds or not _fits(key, value):
            raise Refusal(f"{key}={value} is not {words}: give {key}=<{words}>")
    if values.get("device") == "gpu":
        values["device"] = "cuda"
    return directory, values


def _fits(key: str, value: Any) -> bool:
    if key == "device":
        return value in ("auto", "cpu", "cuda", "gpu")
    if key.startswith("data.") and key != "data.workers":
        return bool(value)
    return value >= (1 if key == "recipe.batch_size" else 0)


def of_model(typed: Sequence[Argument]) -> Config:
    """The configuration of a model without a run, unpruned; raises `Refusal`."""
    for argument in typed:
        if argument.key.split(".")[0] in _PRUNING:
            raise Refusal(
                f"{argument.text} has no meaning for evaluate.py, which measures a model as it is: drop it, or give "
                "run=<directory of a finished run>"
            )
    return build([*typed, *arguments.parse(["method=dense"])])
