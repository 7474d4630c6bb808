"""How many weights the loss can still move: the share whose gradient passes their mask, and how soft the masks are."""

from __future__ import annotations

from typing import Any

import torch

from pdp.pruner.pruner import Pruner

ALIVE_FROM = 0.01  # of |d effective / d stored|; below, a weight trains a hundred times more slowly than a dense one


def live_share(pruner: Pruner) -> dict[str, Any]:
    """`alive`: the share of prunable weights with |d(m w)/dw| >= 0.01 now; a dense layer's are all alive.

    `temperature`: the weights' mean of log10 tau over the layers that have one, None where none does. One look at the
    device for all layers.
    """
    alive, temperatures, weights = [], [], 0
    for layer in pruner.layers:
        units = layer.stored.numel()
        weights += units
        if not layer.active:
            alive.append(torch.tensor(float(units), device=layer.stored.device))
            continue
        alive.append((pruner.method.slope(layer).abs() >= ALIVE_FROM).sum().float())
        tau = pruner.method.temperature_of(layer)
        if tau is not None:
            value = tau if isinstance(tau, torch.Tensor) else torch.tensor(tau, device=layer.stored.device)
            temperatures.append(value.detach().float().log10())
    count = float(torch.stack([one.to(alive[0].device) for one in alive]).sum()) if alive else 0.0
    mean = None
    if temperatures:
        mean = float(torch.stack([one.to(temperatures[0].device) for one in temperatures]).mean())
    return {"alive": count / weights if weights else 1.0, "temperature": mean}
