"""Tasks: each provides a model, its data, its loss and its metric, as one configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdp.errors import Refusal

if TYPE_CHECKING:
    from pdp.config.schema import Config
    from pdp.tasks.task import Task

TASKS = ("images", "text_classification", "language_modelling")


def build_task(config: Config) -> Task:
    """The task that `config.model.task` names; does not open its data. Raises `Refusal` for an unknown task."""
    if config.model.task == "images":
        from pdp.tasks.images import ImagesTask

        return ImagesTask(config)
    if config.model.task == "text_classification":
        from pdp.tasks.text_classification import TextClassificationTask

        return TextClassificationTask(config)
    if config.model.task == "language_modelling":
        from pdp.tasks.language_modelling import LanguageModellingTask

        return LanguageModellingTask(config)
    raise Refusal(f"model.task={config.model.task} is unknown; it can be {', '.join(TASKS)}")
