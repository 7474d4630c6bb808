"""The optimizer and its learning rate: weight decay on weights only, the rate a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pdp.config.schema import RecipeConfig
from pdp.layers import is_weighted, router_sites, weighted_sites
from pdp.schedule.time import Time
from pdp.sharded import is_sharded
from pdp.training.layer_decay import layer_groups


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of convolution, linear, attention and embedding modules decay, everything else does not.

    Experts' matrices and what chooses among them are linear layers' weights, whatever parameter holds them.
    """
    stacked = [site for _, _, site in (*weighted_sites(model), *router_sites(model)) if not is_weighted(site.module)]
    decayed = {id(site.parameter_held) for site in stacked if not isinstance(site.module, nn.MultiheadAttention)}
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


def make_optimizer(
    model: nn.Module, recipe: RecipeConfig, adapters: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The recipe's optimizer over what of the model is trained, and adapters, which decay as weights do."""
    groups = decay_groups(model, recipe.weight_decay)
    if recipe.layer_decay is not None:
        groups = layer_groups(model, groups, recipe.lr, recipe.layer_decay)
    groups.append({"params": list(adapters), "weight_decay": recipe.weight_decay})
    groups = [group for group in groups if group["params"]]
    # The weight_decay argument below only applies to groups added later: a method's trainable parameters.
    if recipe.optimizer == "adamw":
        # fused updates each weight in one pass; unfused, the optimizer took a third of a small language model's step on
        # a CPU.
        fused = all(fills_its_memory(one) for group in groups for one in group["params"])
        adamw = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
        if fused:
            adamw.register_step_pre_hook(_lay_out_gradients)
        return adamw
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay
    )


def fills_its_memory(parameter: torch.Tensor) -> bool:
    """Whether the parameter has neither gaps nor overlaps in memory, which a fused step takes for granted.

    It would read and write elsewhere in memory, without an error, for one that is a slice of a larger tensor's columns.
    """
    if is_sharded(parameter):
        return True  # a part that the sharding has laid out
    order = sorted(pair for pair in zip(parameter.stride(), parameter.shape, strict=True) if pair[1] != 1)
    expected = 1
    for stride, size in order:
        if stride != expected:
            return False
        expected *= size
    return True


def _lay_out_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Gives each gradient its parameter's order in memory, in which a fused step reads both.

    Autograd does so by itself, but not where a gradient is set by hand or was there before the parameter was laid out.
    """
    for group in optimizer.param_groups:
        for one in group["params"]:
            gradient = one.grad
            if gradient is None or gradient.stride() == one.stride() or is_sharded(one):
                continue
            strides = zip(one.shape, gradient.stride(), one.stride(), strict=True)
            if any(size != 1 and given != own for size, given, own in strides):
                one.grad = torch.empty_like(one).copy_(gradient)


def rate_factor(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate at optimizer step `step` (from 0) as a multiple of recipe.lr.

    With lr_unit=epoch the rate is constant within an epoch: (e + 1) / W in the W warm-up epochs, then a cosine over the
    remaining epochs, as in STR's code. With lr_unit=step the same formulas count steps. With lr_schedule=steps the rate
    is divided by ten at each of lr_drops.
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
    if recipe.lr_schedule == "steps":
        drops = [Time.parse(drop, "recipe.lr_drops") for drop in recipe.lr_drops]
        places = [(one.epochs if by_epoch else one.steps)(recipe.epochs, steps_per_epoch) for one in drops]
        return max(lowest, 0.1 ** sum(moment >= place for place in places))
    return 1.0


def make_average(model: nn.Module, recipe: RecipeConfig) -> Any:
    """The running average of the weights that the recipe asks for; None if it asks for none."""
    if recipe.ema is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=recipe.ema)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its initial one times `factor`."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
