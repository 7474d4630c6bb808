"""Checks at every step for anything that would make a pruner silently wrong, and raises an error with one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pdp.errors import Refusal, Stopped
from pdp.layers import Layer
from pdp.pruner.reading import Watched
from pdp.sharded import any_process, own_part


class Guard:
    """Remembers where the layers of a model were when they were hooked, and which gradients they had."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer]):
        self.model = model
        self.layers = list(layers)
        # DDP gives a layer gradients of other processes even if this process has not used it. So with several processes
        # only this one's own gradients are checked.
        self.own_gradients: set[str] | None = set() if _distributed() else None
        self.handles = [self._watch(layer) for layer in self.layers] if _distributed() else []
        names = {id(module): name for name, module in model.named_modules()}
        self.places: list[tuple[str, dict, str, nn.Module]] = []  # name, parent's modules, key there, module
        seen: set[int] = set()
        for layer in self.layers:
            for site in (site for member in layer.members for site in member.sites):
                name = names[id(site.module)]
                parent, _, key = name.rpartition(".")
                if key and id(site.module) not in seen:
                    seen.add(id(site.module))
                    self.places.append((name, model.get_submodule(parent)._modules, key, site.module))
        sites = [site for layer in self.layers for member in layer.members for site in member.sites]
        self.weights = [(site.module, site.parameter) for site in sites]
        self.checked: list[int] | None = None  # the ids of these weights when they were last checked

    def check_places(self) -> None:
        """Raises `Refusal` if a module has since been replaced, or a weight tied, untied or parametrized."""
        for name, siblings, key, module in self.places:
            if siblings.get(key) is not module:
                raise Refusal(
                    f"{name} is no longer the module that the pruner was made for: replace modules before Pruner(model)"
                )
        # Nothing is tied or untied while every place has the weight that it had.
        found = [id(module._parameters.get(name)) for module, name in self.weights]
        if found != self.checked:
            self._check_ties()
            self.checked = found

    def _check_ties(self) -> None:
        owners: dict[tuple[int, int | None], str] = {}
        for layer in self.layers:
            for member in layer.members:
                tensors = {id(site.module._parameters.get(site.parameter)) for site in member.sites}
                if member.sites[0].module._parameters.get(member.sites[0].parameter) is None:
                    raise Refusal(
                        f"{member.parameter} is no longer a parameter of its module: parametrize before Pruner(model)"
                    )
                if len(tensors) > 1:
                    raise Refusal(
                        f"{member.parameter} was one weight of {len(member.sites)} modules and is no longer: tie them "
                        "again, load_state_dict(assign=True) unties them, or make the pruner after that"
                    )
                own = (tensors.pop(), member.sites[0].index)
                if owners.setdefault(own, member.parameter) != member.parameter:
                    raise Refusal(
                        f"{member.parameter} and {owners[own]} have become one weight: tie weights before Pruner(model)"
                    )

    @torch.no_grad()
    def check_numbers(self) -> None:
        """Raises `Stopped` if a weight is NaN; waits for the device once."""
        stored = [(member.parameter, member.stored) for layer in self.layers for member in layer.members]
        tensors = [(name, own_part(tensor)) for name, tensor in stored]
        by_device: dict[torch.device, list[Tensor]] = {}
        for _, tensor in tensors:
            by_device.setdefault(tensor.device, []).append(torch.isnan(tensor.detach()).any())
        found_here = any(bool(torch.stack(found).any()) for found in by_device.values())
        if not any_process(found_here, stored[0][1]):
            return
        wrong = next(((name, tensor) for name, tensor in tensors if bool(torch.isnan(tensor).any())), None)
        if wrong is None:
            raise Stopped("another process holds NaN weights: training diverged, and no cut can be found")
        raise Stopped(
            f"{wrong[0]} holds {int(torch.isnan(wrong[1]).sum())} NaN of {wrong[1].numel()} weights: training "
            "diverged, and no cut can be found"
        )

    def _watch(self, layer: Layer) -> RemovableHandle:
        parameter = layer.sites[0].parameter_held
        return parameter.register_post_accumulate_grad_hook(lambda _: self.own_gradients.add(layer.name))  # type: ignore[union-attr]

    def remove(self) -> None:
        """Removes its hooks."""
        for handle in self.handles:
            handle.remove()

    def note_gradients(self) -> None:
        """To be called at the end of a step: gradients that exist now do not belong to the next step."""
        if self.own_gradients:
            self.own_gradients.clear()
        for layer in self.layers:
            layer.was_read = False
            layer.last_gradient = _version(layer) if layer.active else None

    def check_gradients(self) -> None:
        """Raises `Stopped` if a stored weight got a gradient although the model did not read its effective weight."""
        if _distributed() and self.own_gradients is None:
            return
        for layer in self.layers:
            if layer.was_read or not layer.active:
                continue
            if self.own_gradients is not None and layer.name not in self.own_gradients:
                continue
            found = _version(layer)
            if found is None or found == layer.last_gradient:
                continue
            if bool(layer.stored.grad.any()):  # type: ignore[union-attr]
                raise Stopped(
                    f"{layer.parameter} got a gradient, but the model never read its masked weight: it is read past "
                    f"its module (from a list, a closure or a compiled part of the model); read module.weight in the "
                    f'forward, or leave the layer out: exclude=["{layer.name}"]'
                )


def _distributed() -> bool:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1


def _version(layer: Layer) -> tuple[int, int] | None:
    gradient = layer.sites[0].parameter_held.grad
    return None if gradient is None else (id(gradient), gradient._version)


def refuse_second_pruner(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Raises `Refusal` if another pruner that is not finished already has one of these layers."""
    for layer in layers:
        for site in (site for member in layer.members for site in member.sites):
            if isinstance(site.module._parameters, Watched):
                raise Refusal(
                    f"{layer.name or 'the model'} has a pruner already, and one weight cannot have two masks: call "
                    "that one's finalize(), or its remove(), before another Pruner(model)"
                )


def more_zeros(layers: Sequence[Layer]) -> str | None:
    """A sentence for layers with more zeros than the mask pruned: zeros from before, or weights that never grew."""
    counted = [layer for layer in layers if layer.units == layer.stored.numel()]  # units are single weights
    zeros = [int((layer.weight == 0).sum()) for layer in counted]
    more = sum(max(0, found - layer.pruned) for layer, found in zip(counted, zeros, strict=True))
    if not more:
        return None
    units = sum(layer.units for layer in counted)
    return (
        f"{more} more weights are zero than were pruned ({sum(zeros) / units:.2%} of the layers' weights, pruned were "
        f"{sum(layer.pruned for layer in counted) / units:.2%}): kept weights that were zero, or grown ones that got "
        "no gradient, stay zero"
    )
