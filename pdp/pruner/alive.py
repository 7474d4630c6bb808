"""How many weights the loss can still change: those whose gradient passes their mask, and how soft the masks are."""

from __future__ import annotations

from typing import Any

import torch

from pdp.pruner.pruner import Pruner

ALIVE_FROM = 0.01  # least |d effective / d stored|; below it, a weight trains a hundred times slower than a dense one


def live_share(pruner: Pruner) -> dict[str, Any]:
    """For the history: `alive` and `temperature`; waits for the device once, for all layers.

    `alive` is the share of prunable weights with |d(m w)/dw| >= 0.01; in a dense layer all weights are alive.
    `temperature` is the mean over weights of log10 tau, in layers that have a temperature; None if none has.
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
