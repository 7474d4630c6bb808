"""evaluate.py lm_eval=[...]: evaluates the hard model on tasks of the Language Model Evaluation Harness (lm-eval)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pdp.config.schema import Config
from pdp.errors import Refusal, Stopped
from pdp.tasks.hub import reachable
from pdp.tasks.language_modelling import LanguageModellingTask
from pdp.tasks.task import Task
from pdp.training.display import Display
from pdp.wording import one_line


def check_lm_eval(task: Task, tasks: Sequence[str]) -> None:
    """Raises `Refusal` for a model that is no causal language model, before any data is opened."""
    if tasks and not isinstance(task, LanguageModellingTask):
        raise Refusal(
            f"lm_eval={','.join(tasks)} is for causal language models: drop it, or give a run or model of "
            "data=text, wikitext or docstrings"
        )


def show_lm_eval(config: Config, task: Task, model: nn.Module, tasks: Sequence[str], display: Display) -> None:
    """Evaluates the model on the tasks and prints a row for each metric; raises `Stopped` if lm-eval fails."""
    if not tasks:
        return
    rows = [
        (name, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}")
        for name, metric, value, error in run_lm_eval(config, task, model, tasks)
    ]
    display.table("lm-eval, hard model", ("task", "metric", "value", "standard error"), rows)


@torch.no_grad()
def run_lm_eval(
    config: Config, task: Task, model: Any, tasks: Sequence[str]
) -> list[tuple[str, str, float, float | None]]:
    """Task, metric, value and standard error of each result, None for no error; raises `Stopped` on failure."""
    if not reachable():
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        wrapped = HFLM(
            pretrained=model.eval(),
            tokenizer=task.tokenizer,  # type: ignore[attr-defined]
            batch_size=config.recipe.batch_size,
            max_length=config.data.context,  # type: ignore[attr-defined]
        )
        found = simple_evaluate(model=wrapped, tasks=[_task(one) for one in tasks], random_seed=config.seed)
    except Exception as error:  # lm-eval, its tasks and their data can raise any kind of error
        raise Stopped(
            f"lm_eval={','.join(tasks)}: lm-eval could not run it ({type(error).__name__}: {one_line(error)[:200]}); "
            "give tasks that it knows, and whose data are at hand"
        ) from None
    rows = []
    for name, values in found["results"].items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and not metric.endswith("_stderr") and filtered:
                error_of = values.get(f"{metric}_stderr,{filtered}")
                error_of = float(error_of) if isinstance(error_of, int | float) else None
                rows.append((name, metric if filtered == "none" else f"{metric} ({filtered})", float(value), error_of))
    return rows


def _task(name: str) -> Any:
    """What lm-eval takes as a task: a name that it knows, or the content of a task's YAML file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    import yaml

    return yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
