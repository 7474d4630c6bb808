"""What is trained beside the model's own weights: its groups in the optimizer and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pdp.errors import Refusal
from pdp.pruner.averaging import average_gradients
from pdp.pruner.parts import Parts, moment_of


def adapter_parameters(pruner: Parts) -> list[nn.Parameter]:
    """`Pruner.adapter_parameters`."""
    return [one for adapter in pruner.adapters for one in (adapter.a, adapter.b)]


def extra_groups(pruner: Parts) -> list[dict[str, Any]]:
    """`Pruner.extra_groups`."""
    own = pruner.method.parameter_groups()
    return own + pruner.quantizer.parameter_groups() if pruner.quantizer is not None else own


def attach(pruner: Parts, optimizer: torch.optim.Optimizer) -> None:
    """`Pruner.attach`."""
    groups = extra_groups(pruner)
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(extra) not in known for group in groups for extra in group["params"]):
        if any("initial_lr" in group for group in optimizer.param_groups):
            raise Refusal(
                f"method={pruner.method.options.name} adds parameters to the optimizer, and a learning-rate "
                "scheduler knows it already: call pruner.attach(optimizer) first, then make the scheduler"
            )
        for group in groups:
            optimizer.add_param_group(group)
    pruner.method.optimizer = optimizer


def after_backward(pruner: Parts) -> None:
    """`Pruner.after_backward`."""
    extras = [extra for group in extra_groups(pruner) for extra in group["params"]]
    average_gradients([*extras, *adapter_parameters(pruner)])
    if pruner.quantizer is not None:
        pruner.quantizer.after_backward()
    if pruner.schedule is not None:
        pruner.guard.check_gradients()
        pruner.method.after_backward(pruner.layers, moment_of(pruner))
