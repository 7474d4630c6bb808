"""recipe.sharding=fsdp: a language model's weights, gradients and optimizer state in parts on all processes (FSDP2).

Each block of the model is gathered when it computes and parted again after it. Everything that leaves the processes,
checkpoints and weights, is whole, so that a run goes on under any number of them, sharded or not. What makes a whole is
collective: all processes call it together, and the main one alone keeps what comes out.
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
    """Whether this run's model is sharded; one process holds all of it anyway."""
    return config.recipe.sharding == "fsdp" and torch.distributed.is_initialized()


def shard(model: nn.Module, accelerator: Accelerator) -> None:
    """Shards `model`, which may lie on the CPU, in place: each block of its stacks, then all that is left as one."""
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
    """Raises `Refusal` for layers whose weight is one matrix of a parameter, as experts' may be: a shard has a part."""
    stacked = next((layer for layer in pruner.layers if layer.stacked), None)
    if stacked is not None:
        raise Refusal(
            f"recipe.sharding=fsdp: {stacked.parameter} holds all experts, whose masks on parts of it have not been "
            f"shown equal: give recipe.sharding=none, or leave them out with prune.exclude=['*.experts.*']"
        )


def follow(pruner: Pruner, device: torch.device) -> None:
    """Brings what the pruner holds to where the shards lie."""
    for layer in pruner.layers:
        layer.state = {key: value.to(device) for key, value in layer.state.items()}


def whole_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The model's state dict in host memory, tied weights as one tensor; empty where `keep` is false. Collective."""
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
    """Takes whole weights by name, of tied ones under any name; raises `RuntimeError` for another model."""
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
    """Has the state dict that it is given."""

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self.given = state

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return dict(self.given)


def save_model_weights(model: nn.Module, path: Path, main: bool) -> None:
    """`save_weights` of a model that may be sharded; the main process writes. Collective where it is."""
    if not any(is_sharded(one) for one in model.parameters()):
        if main:
            save_weights(model, path)
        return
    state = whole_weights(model, keep=main)
    if main:
        save_weights(_Whole(state), path)


def load_model_weights(model: nn.Module, path: Path) -> None:
    """`load_weights` into a model that may be sharded; raises `Refusal`."""
    if not any(is_sharded(one) for one in model.parameters()):
        load_weights(model, path)
        return
    try:
        take_weights(model, read_tensors(path))
    except RuntimeError as error:
        raise Refusal(f"{path} is of another model: {' '.join(str(error).split())[:300]}") from None


def made_whole(config: Config, task: Task, pruner: Pruner, model: nn.Module, path: Path) -> nn.Module:
    """A finished run's model from its weights, in host memory, of one piece; the pruner's layers are its own then."""
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
    """The optimizer's state dict with whole tensors in host memory. Collective."""
    state = optimizer.state_dict()

    def made(value: Any) -> Any:
        if not is_sharded(value):
            return value
        found = whole(value)
        return found.cpu() if keep else None

    kept = {key: {name: made(value) for name, value in one.items()} for key, one in state["state"].items()}
    return {"state": kept, "param_groups": state["param_groups"]}


def parted_optimizer(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A whole optimizer state as the parameters of `optimizer` lie."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(numbers) != len(parameters):
        return state  # which the optimizer refuses itself
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
    """Batches, as many on every process, and whether each is this one's own to observe: a forward needs them all."""
    batches = iter(loader)
    while True:
        batch = next(batches, None)
        have = batch is not None and len(batch["index"]) > 0
        count = torch.tensor([float(have)], device=accelerator.device)
        torch.distributed.all_reduce(count)
        if not count.item():
            return
        if count.item() < accelerator.num_processes:  # the last, short batch: the main process has a part of it
            lent = broadcast_object_list([send_to_device(batch, "cpu") if accelerator.is_main_process else None])
            batch = batch if have else send_to_device(lent[0], accelerator.device)
        yield batch, have
