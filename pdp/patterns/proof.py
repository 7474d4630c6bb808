"""Verifies couplings by experiment: the masked, the finalized and the smaller model must compute the same.

On a copy with random weights and statistics, in float64 where the model computes in it, some units of every coupling
are zeroed. Where something is wrong with all couplings together, parts of them are added one after the other; what
does not go with those proven so far stays. Whether the smaller model runs is tried on shapes alone then. The number of
trials is bounded by the number of layers: up to 1000 of them a model is followed and proven in eight forwards.
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
from pdp.patterns.coupling import Coupling, describe, input_columns, places_of, row_axis
from pdp.patterns.shrink import leaving_some, remove

Call = Callable[[nn.Module, Any], Any]

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3}  # of the largest output; random weights amplify rounding
_SHAPE_TRIALS, _TRIALS = 64, 12
_LAYER_TRIALS = 8000, 2000  # the same in layers: trials are fewer where a forward has more of them
_HEAVY = 20e9, 40e6  # multiply-adds of a forward, and parameters, above which float32 comes first
_SAMPLES, _LIGHT = 4, 1e9  # samples in place of one, for models of fewer multiply-adds
_DEEP = 100, 400  # layers between which rounding may be all that differs, and another trial is affordable
_HUGE = 400e6  # parameters above which float64 would take too much memory
_UNSETTLED = "whether the model stays the same function without its channels could not be settled"


def prove(model: nn.Module, couplings: Sequence[Coupling], call: Call, example: Any, macs: int) -> None:
    """Refuses those of `couplings` whose removal would change the model's function, each with its reason."""
    wanted = [one for one in couplings if one.refused is None and one.units > 1]
    if not wanted:
        return
    numbers = sum(one.numel() for one in model.parameters())
    heavy = macs > _HEAVY[0] or numbers > _HEAVY[1]
    trial = _Trial(model, wanted, call, example, torch.float32 if heavy else torch.float64, macs)
    if trial.differs(wanted) is None:
        return
    layers = sum(is_weighted(module) for module in model.modules())
    if numbers < _HUGE and (heavy or _DEEP[0] < layers <= _DEEP[1]):
        # A deep model may amplify rounding without bound: in doubles, with smaller numbers, it is seen if it is that.
        trial = _Trial(model, wanted, call, example, torch.float64, macs, 0.5)
        if trial.differs(wanted) is None:
            return
    if trial.takes_shapes():
        wanted = _together(wanted, trial.does_not_run, min(_SHAPE_TRIALS, max(2, _LAYER_TRIALS[0] // layers)))
    _together(wanted, trial.differs, min(_TRIALS, max(1, _LAYER_TRIALS[1] // layers)))


def _together(wanted: list[Coupling], wrong: Callable[[list[Coupling]], str | None], trials: int) -> list[Coupling]:
    """The couplings that are correct all together; the others are refused."""
    proven: list[Coupling] = []
    pending = [wanted]
    said = ""
    while pending:
        some = pending.pop()
        if trials > 0:
            reason = wrong(proven + some)
            said = reason or said
        else:
            reason = f"{_UNSETTLED} in so many trials ({said})"
        trials -= 1
        if reason is None:
            proven += some
        elif len(some) == 1 or trials < 0:
            for one in some:
                one.refused = reason
        else:
            half = len(some) // 2
            pending += [some[half:], some[:half]]
    return proven


class _Trial:
    """A random copy of the model, its inputs, and the units to remove from each coupling."""

    def __init__(
        self,
        model: nn.Module,
        couplings: Sequence[Coupling],
        call: Call,
        example: Any,
        dtype: torch.dtype,
        macs: int,
        gain: float = 2.0,
    ):
        self.call, self.example, self.gain = call, example, gain
        self.generator = torch.Generator().manual_seed(0)
        self.model = copied(model).eval()
        self.gone = {one.name: leaving_some(one, self._some(one.units)) for one in couplings}
        self._randomize(couplings)
        self.dtype, self.copies = torch.float32, 1
        self.inputs = tree_map(self._noise, example)
        if dtype == torch.float64:
            self._in_doubles(_SAMPLES if macs < _LIGHT and self._in_batches() else 1)

    def _some(self, units: int) -> set[int]:
        count = min(max(1, round(0.4 * units)), units - 1)
        return set(torch.randperm(units, generator=self.generator)[:count].tolist())

    def _in_doubles(self, many: int) -> None:
        """Switches to float64 if the model supports it, and to so many samples for one if it takes them."""
        single = self.inputs
        self.dtype = torch.float64
        self.model.double()
        for self.copies in (many, 1) if many > 1 else (1,):
            self.inputs = tree_map(self._noise, self.example)
            if self._error(self.model, self.inputs) is None:
                return
        self.dtype = torch.float32
        self.model.float()
        self.inputs = single

    def _in_batches(self) -> bool:
        """Whether the inputs look like a batch: a single sample may leave a small layer's units without a signal."""
        sizes = {one.shape[0] for one in tree_leaves(self.example) if isinstance(one, Tensor) and one.dim()}
        return len(sizes) == 1

    def _noise(self, value: Any) -> Any:
        if isinstance(value, Tensor) and self.copies > 1 and value.dim():
            value = value.repeat(self.copies, *(1,) * (value.dim() - 1))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        return noise.to(value.device, self.dtype)

    @torch.no_grad()
    def _randomize(self, couplings: Sequence[Coupling]) -> None:
        """Random values on a scale at which signals neither vanish nor explode."""
        vectors = {f"{one.name}.{one.key}" for coupling in couplings for one in coupling.vectors}
        for name, module in self.model.named_modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is None or not tensor.is_floating_point():
                    continue
                own = isinstance(tensor, nn.Parameter)
                if not own and "running_" not in key and f"{name}.{key}" not in vectors:
                    continue
                numbers = torch.rand(tensor.shape, generator=self.generator)
                if "var" in key or "weight" in key and (tensor.dim() <= 1 or not own):
                    numbers += 0.5
                else:
                    fan = (
                        tensor.numel() / tensor.shape[row_axis(module)]
                        if is_weighted(module) and tensor.dim() > 1
                        else tensor.shape[-1:]
                    )
                    size = (
                        0.3
                        if tensor.dim() <= 1
                        else math.sqrt(self.gain / fan)
                        if isinstance(fan, float)
                        else fan[0] ** -0.5
                    )
                    numbers = (numbers - 0.5) * math.sqrt(12) * size
                tensor.data.copy_(numbers)

    def _error(self, model: nn.Module, inputs: Any) -> str | None:
        try:
            with torch.no_grad():
                self.call(model, inputs)
        except Exception as error:
            return f"the model does not run without them ({describe(error)})"
        return None

    def _shapes(self, couplings: Sequence[Coupling]) -> str | None:
        """The error of the model without these channels on meta tensors (shapes without values); None if it runs."""
        model = copied(self.model, lambda tensor: torch.empty_like(tensor, device="meta"))
        inputs = tree_map(lambda one: one.to("meta") if isinstance(one, Tensor) else one, self.inputs)
        try:
            remove(model, [(one, self.gone[one.name]) for one in couplings])
            return self._error(model, inputs)
        except Exception as error:
            return f"it cannot be cut ({describe(error)})"

    def takes_shapes(self) -> bool:
        """Whether the whole model runs on meta tensors."""
        return self._shapes([]) is None

    def does_not_run(self, couplings: list[Coupling]) -> str | None:
        """Why the model does not run without some units of these couplings; None if it runs."""
        return self._shapes(couplings)

    @torch.no_grad()
    def differs(self, couplings: list[Coupling]) -> str | None:
        """What is wrong with the model without some units of these couplings; None if nothing is."""
        model = copied(self.model, lambda tensor: tensor)
        written: set[tuple[str, str]] = set()
        try:
            for one in couplings:
                _zero(model, one, self.gone[one.name], written, finished=False)
            hard = _numbers(self.call(model, self.inputs))
            for one in couplings:
                _zero(model, one, self.gone[one.name], written, finished=True)
            finished = _numbers(self.call(model, self.inputs))
            remove(model, [(one, self.gone[one.name]) for one in couplings])
            smaller = _numbers(self.call(model, self.inputs))
        except Exception as error:
            return f"the model does not run without them ({describe(error)})"
        if (off := self._apart(hard, finished)) is not None:
            return f"a masked channel is read as something else than zero ({off})"
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


def copied(model: nn.Module, of: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A copy whose modules are its own, and its tensors too, or what `of` gives for each."""
    memo: dict[int, Any] = {}
    for value in (value for module in model.modules() for value in vars(module).values()):
        # What `torch.nn.utils.weight_norm` computes is no leaf, which cannot be copied.
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    for tensor in (*model.parameters(), *model.buffers()) if of is not None else ():
        other = of(tensor)  # type: ignore[misc]
        if isinstance(tensor, nn.Parameter) and not isinstance(other, nn.Parameter):
            other = nn.Parameter(other, requires_grad=False)
        memo[id(tensor)] = other
    return copy.deepcopy(model, memo)


def _numbers(output: Any) -> list[Tensor]:
    """The tensors of an output."""
    return [one.double() for one in tree_leaves(output) if isinstance(one, Tensor)]


def _zero(model: nn.Module, coupling: Coupling, gone: set[int], written: set[tuple[str, str]], finished: bool) -> None:
    """Sets what a mask covers of these units to zero; with `finished` also the inputs that read them.

    A tensor is replaced by a copy when it is first written.
    """

    def write(name: str, key: str, axis: int, units: list[int]) -> None:
        held: Any = model.get_submodule(name)
        if held._parameters.get(key) is None:
            return
        if (name, key) not in written:
            held._parameters[key] = nn.Parameter(held._parameters[key].detach().clone(), requires_grad=False)
            written.add((name, key))
        tensor = held._parameters[key].data
        places = torch.from_numpy(places_of(units, gone))
        tensor.index_fill_(axis, places.to(tensor.device), 0.0)

    for part in (*coupling.outputs, *coupling.norms):
        write(part.name, "weight", row_axis(part.module), part.units)
        write(part.name, "bias", 0, part.units)
    for vector in coupling.vectors:
        if vector.masked:
            write(vector.name, vector.key, vector.axis, vector.units)
    for part in coupling.inputs:
        if part.masked or finished:
            write(part.name, "weight", 1 - row_axis(part.module), input_columns(part))
