"""Couplings are tried before they are believed: masked, finished and physically smaller, the model is one function.

On a copy with random weights and statistics, in float64 where the model computes in it, some units of every coupling
are zeroed. Where the three differ, the couplings are halved until those are found that cannot be right.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pdp.layers import is_weighted
from pdp.patterns.coupling import Coupling, describe, input_columns, row_axis
from pdp.patterns.shrink import remove

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3}  # of the largest output; random weights amplify rounding
_MOST = 40  # trials in all: halving ends there, and what is not proven stays
_HEAVY = 20e9, 40e6  # multiply-adds of a forward, and parameters, above which float32 must do


def prove(
    model: nn.Module, couplings: Sequence[Coupling], call: Callable[[nn.Module, Any], Any], example: Any, macs: int
) -> None:
    """Refuses those of `couplings` with which the smaller model would be another function, each with its reason."""
    wanted = [one for one in couplings if one.refused is None and one.units > 1]
    if not wanted:
        return
    heavy = macs > _HEAVY[0] or sum(one.numel() for one in model.parameters()) > _HEAVY[1]
    trial = _Trial(model, wanted, call, example, torch.float32 if heavy else torch.float64)
    pending, budget = [wanted], _MOST
    while pending:
        some = pending.pop()
        if not budget:
            for one in some:
                one.refused = "whether the model stays the same function without its channels could not be settled"
            continue
        budget -= 1
        found = trial.differs(some)
        if found is None:
            continue
        if len(some) == 1:
            some[0].refused = found
            continue
        half = len(some) // 2
        pending += [some[half:], some[:half]]
    # Each proven part by itself; and all of them together.
    left = [one for one in wanted if one.refused is None]
    if len(left) < len(wanted) and left and (found := trial.differs(left)) is not None:
        for one in left:
            one.refused = f"together with others, {found}"


class _Trial:
    """A random copy of the model, its inputs, and what some units of each coupling are."""

    def __init__(self, model: nn.Module, couplings: Sequence[Coupling], call: Any, example: Any, dtype: torch.dtype):
        self.call, self.example = call, example
        self.generator = torch.Generator().manual_seed(0)
        self.model = copy.deepcopy(model).eval()
        self.gone = {one.name: self._some(one.units) for one in couplings}
        self._randomize(couplings)
        self.dtype = dtype
        if not self._runs():
            self.dtype = torch.float32
            self.model.float()
            self._runs()

    def _some(self, units: int) -> set[int]:
        count = min(max(1, round(0.4 * units)), units - 1)
        return set(torch.randperm(units, generator=self.generator)[:count].tolist())

    def _runs(self) -> bool:
        """Whether the copy runs in `dtype`; its inputs are then in it too."""
        if self.dtype == torch.float64:
            self.model.double()
        self.inputs = tree_map(self._noise, self.example)
        try:
            with torch.no_grad():
                self.call(self.model, self.inputs)
        except Exception:
            return False
        return True

    def _noise(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        return noise.to(value.device, self.dtype)

    @torch.no_grad()
    def _randomize(self, couplings: Sequence[Coupling]) -> None:
        """Random numbers of a size at which signals neither die nor explode."""
        vectors = {f"{one.name}.{one.key}" for coupling in couplings for one in coupling.vectors}
        for name, module in self.model.named_modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None or not tensor.is_floating_point():
                    continue
                own = isinstance(tensor, nn.Parameter)
                if not own and "running_" not in key and f"{name}.{key}" not in vectors:
                    continue
                numbers = torch.rand(tensor.shape, generator=self.generator).sub_(0.5).mul_(math.sqrt(12))
                if is_weighted(module) and key == "weight":
                    fan = tensor.numel() / tensor.shape[row_axis(module)]
                    numbers *= math.sqrt(2 / fan)
                elif "var" in key or (tensor.dim() <= 1 or not own) and "weight" in key:
                    numbers = 0.5 + torch.rand(tensor.shape, generator=self.generator)
                elif tensor.dim() <= 1:
                    numbers *= 0.3
                else:
                    numbers *= 1 / math.sqrt(max(tensor.shape[-1], 1))
                tensor.data.copy_(numbers)

    @torch.no_grad()
    def differs(self, couplings: Sequence[Coupling]) -> str | None:
        """What is wrong without some units of these; None where nothing is."""
        masked = copy.deepcopy(self.model)
        for one in couplings:
            _zero(masked, one, self.gone[one.name], finished=False)
        hard = _numbers(self.call(masked, self.inputs))
        for one in couplings:
            _zero(masked, one, self.gone[one.name], finished=True)
        finished = _numbers(self.call(masked, self.inputs))
        if (off := self._apart(hard, finished)) is not None:
            return f"a masked channel is read as something else than zero ({off})"
        try:
            remove(masked, [(one, self.gone[one.name]) for one in couplings])
            smaller = _numbers(self.call(masked, self.inputs))
        except Exception as error:
            return f"the model does not run without them ({describe(error)})"
        if (off := self._apart(finished, smaller)) is not None:
            return f"the model is another function without them ({off})"
        return None

    def _apart(self, one: list[Tensor], other: list[Tensor]) -> str | None:
        if [value.shape for value in one] != [value.shape for value in other]:
            return "its outputs have another shape"
        for first, second in zip(one, other, strict=True):
            off = float((first - second).abs().max() / first.abs().max().clamp(min=1e-30)) if first.numel() else 0.0
            if not off <= _TOLERANCE[self.dtype]:
                return f"{off:.2g} of the largest output apart"
        return None


def _numbers(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    leaves = [one for one in tree_leaves(output) if not isinstance(one, (int, float, str, bool, type(None)))]
    return [one.double() for one in leaves if isinstance(one, Tensor)]


@torch.no_grad()
def _zero(model: nn.Module, coupling: Coupling, gone: set[int], finished: bool) -> None:
    """What a mask does to these units; `finished` with all that reads them."""

    def write(name: str, key: str, axis: int, units: list[int]) -> None:
        held: Any = model.get_submodule(name)
        tensor = held._parameters.get(key)
        if tensor is not None:
            places = [index for index, unit in enumerate(units) if unit in gone]
            tensor.data.index_fill_(axis, torch.tensor(places, dtype=torch.long, device=tensor.device), 0.0)

    for part in coupling.outputs:
        write(part.name, "weight", row_axis(part.module), part.units)
        write(part.name, "bias", 0, part.units)
    for part in coupling.norms:
        write(part.name, "weight", 0, part.units)
        write(part.name, "bias", 0, part.units)
    for vector in coupling.vectors:
        if vector.masked:
            write(vector.name, vector.key, vector.axis, vector.units)
    for part in coupling.inputs:
        if part.masked or finished:
            write(part.name, "weight", 1 - row_axis(part.module), input_columns(part))
