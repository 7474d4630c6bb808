"""The optimizer and its learning rate: decay on weights only, the rate a stateless function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from pdp.config.schema import RecipeConfig
from pdp.layers import is_weighted
from pdp.time import Time


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of convolution, linear, attention and embedding modules decay, everything else does not."""
    decayed: set[int] = set()
    for module in model.modules():
        if is_weighted(module) or isinstance(module, nn.Embedding):
            decayed |= {id(module._parameters.get("weight"))}
        elif isinstance(module, nn.MultiheadAttention):
            decayed |= {id(value) for key, value in module._parameters.items() if key.endswith("proj_weight")}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [one for one in parameters if id(one) in decayed], "weight_decay": weight_decay},
        {"params": [one for one in parameters if id(one) not in decayed], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer over the model's parameters."""
    groups = [group for group in decay_groups(model, recipe.weight_decay) if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def rate_factor(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate at optimizer step `step` (from 0) as a multiple of recipe.lr.

    With `lr_unit` epoch the rate holds for an epoch: (e + 1) / W in W warm-up epochs, then cosine over the epochs left,
    as in STR's code; with step the same formulas over steps.
    """
    by_epoch = recipe.lr_unit == "epoch"
    moment = step // steps_per_epoch if by_epoch else step
    total = recipe.epochs if by_epoch else recipe.epochs * steps_per_epoch
    warmup_time = Time.parse(recipe.lr_warmup, "recipe.lr_warmup")
    warmup = (warmup_time.epochs if by_epoch else warmup_time.steps)(recipe.epochs, steps_per_epoch)
    if moment < warmup:
        return (moment + 1) / warmup
    progress = (moment - warmup) / max(1, total - warmup)
    lowest = recipe.lr_min / recipe.lr
    if recipe.lr_schedule == "cosine":
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.lr_schedule == "linear":
        return lowest + (1 - lowest) * (1 - progress)
    return 1.0


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scales every group's own initial rate."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
