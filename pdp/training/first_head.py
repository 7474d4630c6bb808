"""Whether the classes of a run that another begins with are those of the new data, and what becomes of its head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pdp.config.schema import Config
from pdp.config.start import Start
from pdp.errors import Refusal
from pdp.tasks import build_task
from pdp.tasks.image_weights import ANEW
from pdp.tasks.task import Task, same_classes
from pdp.tasks.text_task import TextTask
from pdp.wording import one_line

_SHOWN = 5  # most class names in a line


def fit_head(config: Config, task: Task, model: nn.Module, start: Start, state: dict[str, Tensor]) -> list[str]:
    """Changes a run's weights, by their names, to fit the classes of the open data; returns notes.

    Rows of a head for the same classes are put in the data's order. A head for other classes is replaced by the model's
    random one, which a head of another size becomes when it is loaded. Raises `Refusal` where it would stay random.
    """
    theirs = build_task(start.config)
    theirs.recall(start.record.classes)
    its, ours = _names(theirs), _names(task)
    if config.dry_run or _same(theirs, task):
        if config.dry_run or its == ours or not (its and ours):
            return []
        return [f"the run's classes, {_listed(its)}, are taken to be {_listed(ours)}, as numbers have no names"]
    of_run, of_data = _said(theirs, its), _said(task, ours)
    said = f"from={start.path} was trained for {of_run}, and this data has {of_data}"
    heads = task.head_parameters(model)
    if sorted(its) == sorted(ours) and its:
        if config.prune.pattern == "block" and config.start.mask == "hold":
            raise Refusal(
                f"{said}, the same in another order, in which blocks of zeros cannot be held: give start.mask=free"
            )
        order = torch.tensor([its.index(one) for one in ours])
        for name in heads:
            state[name] = state[name][order]
        return [f"the run's classes are {of_run}: {_layers(heads)} put in the data's order"]
    if config.recipe.epochs == 0:
        raise Refusal(
            f"{said}: its head would start random and, with recipe.epochs=0, stay so: give recipe.epochs=<at least 1>, "
            "or data of the run's classes"
        )
    own = model.state_dict()
    for name in heads:
        state[name] = own[name].detach().clone()
    return [f"the run was trained for {of_run}, and this data has {of_data}: {_layers(heads)} {ANEW}"]


def _names(task: Task) -> list[str]:
    """The names of a task's classes; empty where they have none, or there are none."""
    return list(task.labels or ()) if isinstance(task, TextTask) else list(task.class_names)


def _same(theirs: Task, task: Task) -> bool:
    """Whether two tasks have the same classes in the same order, as far as their names say; else the same data."""
    if isinstance(task, TextTask) and isinstance(theirs, TextTask):
        if task.labels is None or (task.regression and theirs.regression):
            return True
        return task.regression == theirs.regression and same_classes(theirs.labels or (), task.labels)
    its, ours = _names(theirs), _names(task)
    return same_classes(its, ours) if its and ours else theirs.data_name == task.data_name


def _said(task: Task, names: Sequence[str]) -> str:
    if names:
        return _listed(names)
    return f"the {'scores' if isinstance(task, TextTask) else 'classes'} of {task.data_name}"


def _layers(parameters: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in parameters)) or "its head"


def _listed(names: Sequence[str]) -> str:
    return ", ".join([one_line(name)[:40] for name in names[:_SHOWN]] + ["..."] * (len(names) > _SHOWN))
