"""The arguments of train.py for what the benchmarks measure; no data is opened for them."""

from __future__ import annotations

from typing import Any

from pdp.config.groups import CONF

PATTERNS = ("random", "nm", "channel", "block")
# (is the model compiled, are whole steps replayed from a CUDA graph)
WAYS = {"plain": (False, False), "compiled": (True, False), "captured": (False, True), "both": (True, True)}
SPARSITY = {"random": 0.9, "channel": 0.5, "block": 0.8}  # MobileNet-v1's is taken from the paper's abstract


def task_of(model: str) -> str:
    """model.task of a model's configuration file; "images" for any other name, which is looked up in timm."""
    import yaml

    path = CONF / "model" / f"{model}.yaml"
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["task"]) if path.is_file() else "images"


def words(model: str, batch: int, values: dict[str, Any]) -> list[str]:
    """The arguments of train.py except for those that choose what is pruned and how; no data is opened."""
    known, task = (CONF / "model" / f"{model}.yaml").is_file(), task_of(model)
    found = [f"model={model}"] if known else ["model=timm", f"model.name={model}"]
    if task == "images":
        found += ["data=imagenet", f"data.image_size={values['size']}"]
        found += [f"recipe.channels_last={values['channels_last']}"]
    elif task == "text_classification":
        found += ["data=glue", "data.task=mnli", f"data.max_length={values['length'] or 128}", "model.pretrained=false"]
    else:
        found += ["data=wikitext", f"data.context={values['length'] or 1024}", "model.pretrained=false"]
    # A small learning rate: at the recipe's own, random labels could lead to values that never occur in a run.
    found += [f"recipe.batch_size={batch}", f"recipe.precision={values['precision']}", "recipe.lr=1e-4"]
    found += [f"recipe.compile={values['compile']}", f"device={values['device']}", "data.noise_if_absent=true"]
    return [*found, *values["words"]]


def pruned_words(model: str, pattern: str, given: list[str]) -> list[str]:
    """The arguments that choose the pattern and, unless they are given, the sparsity."""
    if pattern == "nm" or any(word.startswith("sparsity=") for word in given):
        return [f"prune={pattern}"]
    share = 0.866 if (model, pattern) == ("mobilenet_v1", "random") else SPARSITY[pattern]
    return [f"prune={pattern}", f"sparsity={share}"]


def way_of(row: dict[str, Any]) -> str:
    """The name of the way in `WAYS`; rows of earlier files have no captured steps."""
    how = (row.get("compile", False), row.get("captured", False))
    return next(name for name, one in WAYS.items() if one == how)
