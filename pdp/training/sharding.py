"""recipe.sharding=fsdp: each process holds a part of a language model's weights, gradients and optimizer state (FSDP2).

The weights of a block are gathered while the block computes and freed afterwards. Checkpoints and weight files hold
whole tensors, so that a run can continue with any number of processes, sharded or not. Functions that gather whole
tensors are collective: all processes must call them, and only the main process keeps the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor, nn

from pdp.config.schema import Config
from pdp.errors import Refusal
from pdp.pruner.pruner import Pruner
from pdp.runs.checkpoint import load_weights, read_tensors, save_weights
from pdp.sharded import is_sharded, resharded, whole, write
from pdp.tasks.task import Task


def shards(config: Config) -> bool:
    """Whether this run's model is sharded: if the recipe asks for it and there are several processes."""
    return config.recipe.sharding == "fsdp" and torch.distributed.is_initialized()


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Shards `model`, which may be on the CPU, in place: each block of its stacks by itself, then everything else.

    Raises `Refusal` if torch cannot shard the model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    try:
        for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for block in stack:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh, reshard_after_forward=True)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refusal(
            f"recipe.sharding=fsdp: torch {torch.__version__} cannot shard this model on {accelerator.device.type} "
            f"({reason}): give recipe.sharding=none"
        ) from None
    for buffer in model.buffers():
        buffer.data = buffer.data.to(accelerator.device)


def check_layers(pruner: Pruner) -> None:
    """Raises `Refusal` for layers whose weight is one matrix of a stacked parameter, such as all experts' weights."""
    stacked = next((layer for layer in pruner.layers if layer.stacked), None)
    if stacked is not None:
        raise Refusal(
            f"recipe.sharding=fsdp: {stacked.parameter} holds all experts, whose masks on parts of it have not been "
            f"shown equal: give recipe.sharding=none, or leave them out with prune.exclude=['*.experts.*']"
        )


def follow(pruner: Pruner, device: torch.device) -> None:
    """Moves the pruner's state of each layer to the device of the shards."""
    for layer in pruner.layers:
        layer.state = {key: value.to(device) for key, value in layer.state.items()}


def whole_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The model's state dict with whole tensors on the CPU, tied ones as one; empty unless `keep`. Collective."""
    owners = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    made: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        key = owners.get(name, id(value))
        if key not in made:
            found = whole(value)
            made[key] = found.detach().cpu() if keep else torch.empty(0)
            del found
        if keep:
            state[name] = made[key]
    return state


def take_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copies whole weights into a sharded model; tied ones need only one of their names.

    Raises `RuntimeError` if names or shapes are not the model's.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    given = {id(parameters[name]) for name in state if name in parameters}
    absent = [name for name, one in parameters.items() if id(one) not in given]
    absent += [name for name in buffers if name not in state]
    strange = [name for name in state if name not in parameters and name not in buffers]
    own: dict[str, Tensor] = {**parameters, **buffers}
    wrong = [name for name in state if name in own and own[name].shape != state[name].shape]
    if absent or strange or wrong:
        raise RuntimeError(f"missing {absent[:3]}, unexpected {strange[:3]}, of another shape {wrong[:3]}")
    for name, value in state.items():
        write(own[name], value)


class _Whole(nn.Module):
    """A module whose state dict is the given one."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self.given = state

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self.given)


def save_model_weights(model: nn.Module, path: Path, main: bool) -> None:
    """`save_weights` of a model that may be sharded; only the main process writes. Collective if it is sharded."""
    if not any(is_sharded(one) for one in model.parameters()):
        if main:
            save_weights(model, path)
        return
    state = whole_weights(model, keep=main)
    if main:
        save_weights(_Whole(state), path)


def load_model_weights(model: nn.Module, path: Path) -> None:
    """`load_weights` into a model that may be sharded; raises `Refusal` if the weights are of another model."""
    if not any(is_sharded(one) for one in model.parameters()):
        load_weights(model, path)
        return
    try:
        take_weights(model, read_tensors(path))
    except RuntimeError as error:
        raise Refusal(f"{path} is of another model: {' '.join(str(error).split())[:300]}") from None


def made_whole(config: Config, task: Task, pruner: Pruner, model: nn.Module, path: Path) -> nn.Module:
    """An unsharded copy on the CPU of a finished run's model, read from its weights.

    Afterwards the pruner's layers, and the couplings of the channel pattern, are those of the copy.
    """
    pretrained, config.model.pretrained = config.model.pretrained, "false"
    try:
        made = task.build_model()
    finally:
        config.model.pretrained = pretrained
    load_weights(made, path)
    names = {id(module): name for name, module in model.named_modules()}
    for layer in pruner.layers:
        for site in [*layer.sites, *(site for member in layer.members for site in member.sites)]:
            if id(site.module) in names:
                site.caller = made.get_submodule(names[id(site.caller)])
                site.module = made.get_submodule(names[id(site.module)])
    for coupling in getattr(pruner.pattern, "couplings", {}).values():
        for part in (*coupling.outputs, *coupling.norms, *coupling.vectors, *coupling.inputs):
            if id(part.module) in names:
                part.module = made.get_submodule(names[id(part.module)])
    pruner.model = made
    return made


def whole_optimizer(optimizer: Any, keep: bool = True) -> dict[str, Any]:
    """The optimizer's state dict with whole tensors on the CPU, which is incomplete unless `keep`. Collective."""
    state = optimizer.state_dict()

    def made(value: Any) -> Any:
        if not is_sharded(value):
            return value
        found = whole(value)
        return found.cpu() if keep else None

    kept = {key: {name: made(value) for name, value in one.items()} for key, one in state["state"].items()}
    return {"state": kept, "param_groups": state["param_groups"]}


def parted_optimizer(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A whole optimizer state, sharded as the parameters of `optimizer` are."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(numbers) != len(parameters):
        return state  # the optimizer itself refuses it
    parted = {
        number: {
            name: resharded(value, parameter) if torch.is_tensor(value) and value.shape == parameter.shape else value
            for name, value in state["state"][number].items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
    return {**state, "state": parted}


def in_step(loader: Any, accelerator: Accelerator) -> Iterator[tuple[Any, bool]]:
    """The batches of `loader`, equally many on every process because a forward is collective.

    Each comes with whether it is this process's own. A process that has run out of batches gets the main process's
    batch, computes it too, and must not count it.
    """
    batches = iter(loader)
    while True:
        batch = next(batches, None)
        have = batch is not None and len(batch["index"]) > 0
        count = torch.tensor([float(have)], device=accelerator.device)
        torch.distributed.all_reduce(count)
        if not count.item():
            return
        if count.item() < accelerator.num_processes:  # the last, short batch: the main process has some of it
            lent = broadcast_object_list([send_to_device(batch, "cpu") if accelerator.is_main_process else None])
            batch = batch if have else send_to_device(lent[0], accelerator.device)
        yield batch, have
