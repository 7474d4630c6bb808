"""What recipe.sharding=fsdp goes with; needs no torch."""

from __future__ import annotations

from pdp.config.schema import Config
from pdp.errors import Refusal

METHODS = ("dense", "pdp", "gmp", "oneshot", "held")  # they read whole weights and no gradients


def check_sharding(config: Config) -> None:
    """Raises `Refusal` for what has not been shown equal on shards, with the reason and the override to change."""
    recipe = config.recipe
    if recipe.sharding == "none":
        return
    if config.model.task != "language_modelling":
        raise Refusal(
            f"recipe.sharding={recipe.sharding} is for language models, whose blocks are gathered one after the other: "
            "give recipe.sharding=none"
        )
    method = config.method
    if method.name not in METHODS:
        raise Refusal(
            f"recipe.sharding={recipe.sharding}: method={method.name} reads gradients or trains extras of whole "
            f"layers, of which each process holds a part: give recipe.sharding=none, or method={', '.join(METHODS)}"
        )
    if getattr(method, "temperature_mode", None) == "learned":
        raise Refusal(
            f"recipe.sharding={recipe.sharding}: a learned temperature is no part of the sharded model: give "
            "method.temperature_mode=relative"
        )
    whole = "needs the whole model in each process"
    reasons = {
        "recipe.ema=null": (recipe.ema is not None, f"the average of the weights (recipe.ema={recipe.ema}) {whole}"),
        "recipe.compile=false": (bool(recipe.compile), "a compiled step sees no parts of weights"),
        "recipe.on_nonfinite=stop": (recipe.on_nonfinite == "skip", "processes see the gradients of their parts alone"),
        "recipe.precision=bf16": (recipe.precision == "fp16", "the scaling of losses looks at whole gradients"),
        "quantize=none": (config.quantize.name != "none", f"quantization {whole}"),
        "distill=none": (config.distill.name != "none", f"a teacher {whole}"),
    }
    for remedy, (found, reason) in reasons.items():
        if found:
            raise Refusal(f"recipe.sharding={recipe.sharding}: {reason}: give {remedy}, or recipe.sharding=none")
