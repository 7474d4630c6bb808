"""Checks that model and data fit together and are fully specified; opens neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdp.config.check_values import DATA, GLUE_TASKS, MODELS, TEXT_SOURCES
from pdp.config.data_schema import DATA_SCHEMAS, TextDataConfig
from pdp.config.schema import Config
from pdp.config.source import is_dotted
from pdp.errors import Refusal
from pdp.wording import did_you_mean

NEED_ROOT = ("imagenet", "image_folder")
_CARRIED = {
    "digits": "which come with scikit-learn",
    "grammar_nli": "which is made on the spot",
    "docstrings": "which come with Python",
}


def check_model(config: Config) -> None:
    """Raises `Refusal` for an unknown model or missing weights."""
    model = config.model
    if model.library == "pdp" and model.name not in MODELS:
        raise Refusal(f"model.name={model.name}: no such model; {did_you_mean(model.name, MODELS)}; or model=timm")
    if not model.name.strip():
        raise Refusal("model.name is empty: give model.name=<the name of a model>")
    pretrained = model.pretrained
    if model.library == "import":
        _check_own(config)
    if model.library == "transformers":
        _check_transformer(config)
    elif pretrained.lower() not in ("false", "true") and not Path(pretrained).expanduser().exists():
        raise Refusal(
            f"model.pretrained={pretrained} does not exist: give false, true (the hub's weights), a file, or a folder "
            "that holds model.safetensors"
        )


def _check_own(config: Config) -> None:
    model = config.model
    if not is_dotted(model.name):
        raise Refusal(
            f"model.name={model.name} names nothing in a module: give model=<module>.<class or function>, such as "
            "model=mypackage.models.MyNet"
        )
    if model.task != "images":
        raise Refusal(
            f"model={model.name} is a model of your own, which takes images: for texts give model=huggingface "
            "model.name=<a transformer>, or data= of images"
        )
    if model.pretrained.lower() == "true":
        raise Refusal(
            f"model.pretrained=true: no hub has weights of {model.name}; give a file or a folder, or let its own code "
            "load them (model.arguments)"
        )


def _check_transformer(config: Config) -> None:
    model = config.model
    if model.task == "images":
        raise Refusal("model.library=transformers is for texts: give model.task=text_classification or another model=")
    pretrained = model.pretrained
    if pretrained.lower() not in ("false", "true") and not Path(pretrained, "config.json").expanduser().is_file():
        raise Refusal(
            f"model.pretrained={pretrained} is no folder with a config.json: give false (random weights), true (the "
            "hub's) or a folder that save_pretrained wrote"
        )
    if pretrained.lower() == "true" and model.architecture and not model.hub:
        raise Refusal(
            f"model.pretrained=true: no hub has weights of {model.name}; give a folder or model.pretrained=false"
        )


def check_data(config: Config) -> None:
    """Raises `Refusal` for data that the model cannot take, or whose folder is not given."""
    data, task = config.data, config.model.task
    if type(data) is not DATA_SCHEMAS[task]:
        of_data = next(name for name, schema in DATA_SCHEMAS.items() if schema is type(data))
        raise Refusal(
            f"data={data.name} is for model.task={of_data}, {config.model.name} is a model of {task}: give other "
            "data=, another model=, or model=huggingface model.name=<a transformer>, which takes the data's task"
        )
    if isinstance(data, TextDataConfig):
        of_source, names = TEXT_SOURCES[data.source]
        if of_source != task:
            raise Refusal(f"data.source={data.source} is for model.task={of_source}: choose data by data=<name>")
        if names and data.name not in names:
            raise Refusal(f"data.name={data.name}: no such data; {did_you_mean(data.name, names)}")
        taken = next((source for source, (_, known) in TEXT_SOURCES.items() if data.name in known), data.source)
        if taken != data.source:
            raise Refusal(
                f"data.name={data.name} is what tables call data={taken}, and yours is data.source={data.source}: give "
                "it data.name=<a name of its own>"
            )
        _check_text(config)
    elif data.name not in DATA:
        raise Refusal(f"data.name={data.name}: no such choice; {did_you_mean(data.name, DATA)}")
    if data.name in _CARRIED and data.root:
        raise Refusal(
            f"data.root has no meaning for data={data.name}, {_CARRIED[data.name]}: drop it or name other data="
        )
    if data.name in NEED_ROOT and not data.root and not (config.dry_run or data.noise_if_absent):
        environment = ", or set IMAGENET_DIR" if data.name == "imagenet" else ""
        besides = "" if data.name == "imagenet" else ", or a folder for each class"
        raise Refusal(
            f"data={data.name} needs data.root: give data.root=<folder with train/ and val/{besides}>{environment}"
        )


def _check_table(data: Any, opened: bool) -> None:
    """Raises `Refusal` if a table's files or columns are missing or belong to other data; makes the columns a list.

    With `opened` False (a dry run) they may be missing.
    """
    keys = ("train", "validation_file", "test", "text", "label", "score")
    if data.source != "table":
        given = next((key for key in keys if getattr(data, key, None) is not None), None)
        if given:
            raise Refusal(
                f"data.{given}={getattr(data, given)} is for data=table: give data=table, or drop data.{given}"
            )
        return
    columns = data.text if isinstance(data.text, list | tuple) else [] if data.text is None else [data.text]
    data.text = [str(one) for one in columns]
    if data.task is not None:
        raise Refusal(f"data.task={data.task} is for data=glue: drop data.task, or give data=glue")
    if not opened and data.text == [] and data.label is None and data.score is None:
        return
    if not data.train and not data.test:
        raise Refusal("data=table needs data.train: give data.train=<a .csv, .tsv, .jsonl or .parquet file of rows>")
    if len(data.text) not in (1, 2) or not all(data.text):
        raise Refusal(
            f"data.text={_listed(data.text)} must name the column of the texts, or of both texts of pairs: give "
            "data.text=[<column>] or data.text=[<column>,<column>]"
        )
    if (data.label is None) == (data.score is None):
        raise Refusal(
            "data=table needs either data.label, the column of the classes, or data.score, the column of a score: give "
            + (
                "one of them"
                if data.label is None
                else f"only one of data.label={data.label} and data.score={data.score}"
            )
        )
    target = data.label if data.score is None else data.score
    if target in data.text or len(set(data.text)) < len(data.text):
        raise Refusal(
            f"data.text={_listed(data.text)} and the column {target} must be different columns: change data.text"
        )


def _listed(names: list[str]) -> str:
    return f"[{','.join(names)}]"


def _check_text(config: Config) -> None:
    data: Any = config.data
    if not data.name.strip():
        raise Refusal("data.name is empty: give data.name=<what tables call the data>")
    _check_table(data, opened=not (config.dry_run or data.noise_if_absent))
    if data.source in ("tsv", "files") and not data.root and not (config.dry_run or data.noise_if_absent):
        raise Refusal(f"data={data.name} needs data.root: give data.root=<the folder that holds its files>")
    if (
        data.source == "hub"
        and data.name == "hub_text"
        and not data.root
        and not (config.dry_run or data.noise_if_absent)
    ):
        raise Refusal(
            "data=hub_text needs a data set: give data.name=<owner/name on the hub>, or data.root=<its folder>"
        )
    if data.source == "glue" and data.task is None:
        raise Refusal(f"data.task must be given with data=glue: data.task=<name>, one of {', '.join(GLUE_TASKS)}")
    stride = getattr(data, "stride", None)
    if stride is not None and getattr(data, "protocol", "lines") == "huggingface":
        if stride > data.context:
            raise Refusal(
                f"data.stride={stride} is more than data.context={data.context}, so that tokens would be left out: "
                "lower data.stride, or give null for data.context"
            )
    elif stride is not None and stride >= data.context:
        raise Refusal(
            f"data.stride={stride} must be below data.context={data.context}, as a window's first token is not "
            "predicted: lower data.stride, or give null for data.context - 1"
        )
    if config.recipe.augmentation != "none":
        raise Refusal(f"recipe.augmentation={config.recipe.augmentation} is for images: give recipe.augmentation=none")
    if config.model.task == "language_modelling" and config.recipe.label_smoothing:
        raise Refusal("recipe.label_smoothing would bend perplexity: give recipe.label_smoothing=0")
