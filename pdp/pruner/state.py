"""The pruner's part of a checkpoint: everything that decides how pruning continues."""

from __future__ import annotations

from typing import Any

from pdp.errors import Refusal
from pdp.pruner import adapters
from pdp.pruner.parts import Parts

_OWN = ("epoch", "steps", "start", "fraction", "finished")


def state_of(pruner: Parts) -> dict[str, Any]:
    """The state as tensors and plain values only."""
    return {
        "method": pruner.method.options.name,
        "pattern": pruner.pattern.label,
        **{key: getattr(pruner, key) for key in _OWN},
        "metrics": list(pruner.metrics),
        "layers": {
            layer.name: {
                "units": layer.units,
                "final": layer.final,
                "pruned": layer.pruned,
                "active": layer.active,
                "state": dict(layer.state),
            }
            for layer in pruner.layers
        },
        "own": pruner.method.state_dict(),
        **({"adapters": adapters.state_of(pruner.layers)} if pruner.adapters else {}),
        **({} if pruner.quantizer is None else {"quantizer": pruner.quantizer.state_dict()}),
        **({} if pruner.frozen is None else {"frozen": vars(pruner.frozen)}),
    }


def load_state(pruner: Parts, state: dict[str, Any]) -> None:
    """Restores what `state_of` returned; raises `Refusal` if it is of another model, method or pattern."""
    for key, own in (("method", pruner.method.options.name), ("pattern", pruner.pattern.label)):
        if state.get(key) != own:
            raise Refusal(f"the pruner's state is of {key}={state.get(key)}, this run has {key}={own}")
    own_name = "none" if pruner.quantizer is None else pruner.quantizer.options.name
    if (name := state.get("quantizer", {}).get("name", "none")) != own_name:
        raise Refusal(f"the pruner's state is of quantize={name}, this run has quantize={own_name}")
    kept = state["layers"]
    for layer in pruner.layers:
        if layer.name not in kept or kept[layer.name]["units"] != layer.units:
            raise Refusal(
                f"the pruner's state is of another model: it has no layer {layer.name} of {layer.units} units"
            )
    if len(kept) != len(pruner.layers):
        raise Refusal(f"the pruner's state is of another model: {len(kept)} layers, this one has {len(pruner.layers)}")
    if not state["finished"]:
        adapters.check_state(pruner.layers, state.get("adapters", {}))
    for key in _OWN:
        setattr(pruner, key, state[key])
    pruner.metrics = list(state["metrics"])
    pruner.counted.resumed()
    for layer in pruner.layers:
        saved = kept[layer.name]
        layer.final, layer.pruned = saved["final"], saved["pruned"]
        layer.active = saved.get("active", layer.pruned > 0)
        for key in layer.state.keys() - saved["state"].keys():  # of what this pruner has done since
            del layer.state[key]
        for key, value in saved["state"].items():
            layer.state[key] = value.to(layer.stored.device, copy=True)
    pruner.method.load_state_dict(state["own"])
    adapters.load_state(pruner.layers, state.get("adapters", {}))
    pruner.adapters = [layer.adapter for layer in pruner.layers if layer.adapter is not None]
    if pruner.quantizer is not None:
        pruner.quantizer.load_state_dict(state["quantizer"])
