"""The trainer's checkpoint: everything that decides how a run continues, and how it is restored.

The trainer imports this module, so this module does not import the trainer and takes it as `Any`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pdp.errors import Refusal
from pdp.runs.checkpoint import find_newest, read_checkpoint, restore_random_state
from pdp.training.sharding import parted_optimizer, take_weights, whole_optimizer, whole_weights
from pdp.training.together import decided_by_main, wait_until_visible

_OWN = ("epoch", "batch", "step", "seconds", "metric", "best")


def state_of(trainer: Any, random_states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state as plain values and whole tensors, with the `random_states` of all processes. Collective if sharded."""
    main = trainer.accelerator.is_main_process
    return {
        **{key: getattr(trainer, key) for key in _OWN},
        "measured": trainer.measured,
        "said": trainer.said,
        **trainer.losses.state_dict(),
        "step_ms": list(trainer.step_ms),
        "mask_ms": list(trainer.mask_ms),
        "histograms": {key: torch.from_numpy(value) for key, value in trainer.histograms.items()},
        "random": random_states,
        "model": whole_weights(trainer.model, main) if trainer.sharded else trainer.model.state_dict(),
        "average": trainer.average.module.state_dict() if trainer.average else None,
        "optimizer": (whole_optimizer(trainer.optimizer, main) if trainer.sharded else trainer.optimizer.state_dict()),
        "scaler": trainer.accelerator.scaler.state_dict() if trainer.accelerator.scaler else None,
        "pruner": trainer.pruner.state_dict(),
        "revived": trainer.revived.state_dict(),
        "objective": trainer.objective.state_dict(),
        "tracker": trainer.tracker.state_dict(),
        "ran_under": trainer.ran_under,
    }


def load_state(trainer: Any, state: dict[str, Any]) -> None:
    """Restores `state_of`, also of earlier versions; raises `Refusal` if it is of another model, method or teacher."""
    try:
        if trainer.sharded:
            take_weights(trainer.model, state["model"])
        else:
            trainer.model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise Refusal(
            f"{trainer.directory.checkpoints} is of another model ({reason}): rerun=true starts over"
        ) from None
    if trainer.average:
        trainer.average.module.load_state_dict(state["average"])
    optimizer = state["optimizer"]
    trainer.optimizer.load_state_dict(parted_optimizer(trainer.optimizer, optimizer) if trainer.sharded else optimizer)
    if trainer.accelerator.scaler and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.pruner.load_state_dict(state["pruner"])
    trainer.revived.load_state_dict(state["revived"])
    trainer.tracker.load_state_dict(state["tracker"])
    trainer.objective.load_state_dict(state.get("objective", {}))
    for key in _OWN:
        setattr(trainer, key, state[key])
    trainer.said = list(state.get("said", []))
    trainer.ran_under = with_change([*state.get("ran_under", [])], trainer.ran_under[-1], trainer.step)
    trainer.losses.load_state_dict(state)
    if "measured" not in state and state["batch"] == 0:
        trainer.losses.forget()  # such a checkpoint was saved after an evaluation, with the losses from before it
    trainer.measured = state.get("measured", state["step"])
    trainer.saved = (trainer.step, trainer.measured)
    trainer.step_ms.extend(state["step_ms"])
    trainer.mask_ms.extend(state["mask_ms"])
    trainer.histograms = {key: value.numpy() for key, value in state["histograms"].items()}
    states = state["random"]
    restore_random_state(states[trainer.accelerator.process_index % len(states)])


def with_change(before: list[dict[str, Any]], now: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """What a run ran under, with what it goes on under from `step` on where that is another."""
    if before and all(before[-1][key] == now[key] for key in ("sharding", "processes")):
        return before
    return [*before, {**now, "from_step": step}]


def newest_state(folder: Path, accelerator: Accelerator, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest complete checkpoint; every process gets the same one, however late its machine shows the file."""
    found: dict[str, Any] = {}

    def newest() -> str | None:
        path, state = find_newest(folder, report)
        found["state"] = state
        return path.name if path else None

    name = decided_by_main(accelerator, newest)
    if name is None or found.get("state") is not None:
        return found.get("state")
    wait_until_visible(folder / name)
    return read_checkpoint(folder / name)
