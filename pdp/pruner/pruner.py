"""The pruner: applies a method to a model and manages its phases, dense -> ramp -> full -> hard."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pdp.errors import Refusal
from pdp.layers import Layer
from pdp.methods import make_method
from pdp.methods.calibrated import CalibratedMethod
from pdp.methods.method import Moment, Plan
from pdp.methods.options import MethodOptions
from pdp.patterns import make_pattern
from pdp.patterns.pattern import Pattern, Wanted
from pdp.pruner import adapters
from pdp.pruner.averaging import average_gradients
from pdp.pruner.calibration import Forward, calibrate
from pdp.pruner.gather import gather
from pdp.pruner.guard import Guard, more_zeros, refuse_second_pruner
from pdp.pruner.report import layer_report, soft_gap
from pdp.pruner.shadow import hook, strip, unhook
from pdp.pruner.state import load_state, state_of
from pdp.quantize.frozen import Frozen
from pdp.quantize.options import Int4wOptions, QuantizeOptions, make_options
from pdp.quantize.quantizer import Quantizer
from pdp.schedule.allocation import least_units
from pdp.schedule.shapes import Schedule, place_schedule, starts_after
from pdp.sharded import whole, write
from pdp.spoken import python_words
from pdp.survey import count_weights, nothing_to_prune, survey


class Pruner:
    """Prunes `model` in place during training.

    Call `start_epoch` before each epoch, `step` after each optimizer step and `finalize` at the end. Raises `Refusal`
    (a `ValueError`) for arguments that do not fit together.

    - `method`: a name, whose options are given as further keywords, or its options.
    - `pattern`: random, "2:4" (which implies the target), "4x1" (blocks) or channel; options in `pattern_options`. The
      channel pattern follows the model through `example_input` (a tensor, a tuple of arguments or a dict of keyword
      arguments).
    - `sparsity`: the share of units to prune.
    - `schedule`: a `Schedule`, a name, or a dict of `make_schedule`'s arguments. The default is the paper's relative to
      the run, in the method's own shape: of 100 epochs 16 dense, then 0.015 of the target per epoch; by steps if
      `steps_per_epoch` is given and the run is shorter.
    - `allocation`: global, uniform, erk, file (which reads `allocation_path`), or None for the method's own. Each layer
      keeps at least the share `least_density` of its units; `ends` says whether the first and last layer are pruned,
      dense or first_dense.
    - `exclude`: fnmatch patterns of module names that are not pruned.
    - `include`: fnmatch patterns of layers to prune that stay dense by default: routers of experts, and in a Hugging
      Face model what lies around its blocks (embeddings, poolers, heads).
    - `calibration`: the batches from which wanda and sparsegpt prune at once (see `calibrate`).
    - `upper_bound`: the best possible value of the metric, which schedule.warmup=auto needs; `seed`: for random masks.
    - `quantize`: int8 or int4w, with `quantize_options`: from their `start` on the model computes with quantized
      numbers, and `finalize` leaves the scales in `frozen`; `example_input` then also shows which results of
      convolutions have a range.
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | MethodOptions = "pdp",
        pattern: str | Pattern = "random",
        sparsity: float | None = None,
        epochs: int = 100,
        *,
        schedule: Schedule | str | dict[str, Any] | None = None,
        allocation: str | None = None,
        allocation_path: str | Path | None = None,
        least_density: float = 0.0,
        ends: str = "pruned",
        exclude: Sequence[str] = (),
        own_exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        steps_per_epoch: int | None = None,
        upper_bound: float = 1.0,
        seed: int = 0,
        example_input: Any = None,
        pattern_options: dict[str, Any] | None = None,
        calibration: Iterable[Any] | None = None,
        quantize: str | QuantizeOptions | None = None,
        quantize_options: dict[str, Any] | None = None,
        **options: object,
    ):
        with python_words():
            self._prepare(
                model,
                method,
                pattern,
                sparsity,
                epochs,
                schedule,
                allocation,
                allocation_path,
                least_density,
                ends,
                exclude,
                own_exclude,
                include,
                steps_per_epoch,
                upper_bound,
                seed,
                example_input,
                pattern_options,
                make_options(quantize, **(quantize_options or {})),
                options,
            )
        if calibration is not None:
            self.calibrate(calibration)

    def _prepare(
        self,
        model: nn.Module,
        method: str | MethodOptions,
        pattern: str | Pattern,
        sparsity: float | None,
        epochs: int,
        schedule: Schedule | str | dict[str, Any] | None,
        allocation: str | None,
        allocation_path: str | Path | None,
        least_density: float,
        ends: str,
        exclude: Sequence[str],
        own_exclude: Sequence[str],
        include: Sequence[str],
        steps_per_epoch: int | None,
        upper_bound: float,
        seed: int,
        example_input: Any,
        pattern_options: dict[str, Any] | None,
        quantize: QuantizeOptions,
        options: dict[str, object],
    ) -> None:
        self.model = model
        self.pattern = make_pattern(pattern, **(pattern_options or {}))
        self.method = make_method(method, self.pattern, **options)
        found, others = survey(model, exclude, own_exclude, include)
        # `skipped` gives the reason why each other weight of the model stays dense.
        self.layers, self.skipped = gather(model, self.pattern, self.method, found, others, example_input)
        if not self.layers:
            raise Refusal(nothing_to_prune(f"with pattern {self.pattern.label} the model", self.skipped))
        for layer, least in zip(self.layers, least_units(self.layers, least_density, ends), strict=True):
            layer.least = least
        # Where the model's own zeros are kept, the sparsity that produced them does not determine the layers' shares.
        self.target = None if self.method.locked else self.pattern.target_of(sparsity)
        implied = self.pattern.implied_share is not None and allocation != "file"
        self.allocation = "implied" if implied else allocation or self.method.allocation
        if self.method.locked and allocation != "file":
            self.allocation = "held"
        self.allocation_path = allocation_path
        self.upper_bound = upper_bound
        if self.method.prunes:
            if self.allocation == "file" and not self.method.takes_budget:
                raise Refusal(
                    f"allocation=file has no meaning for method={self.method.options.name}, which finds each layer's "
                    "share itself: drop it"
                )
            if self.target is not None or self.allocation == "file":
                # Refuses a target that cannot be met, before any training.
                self.preview_budget()
            elif self.method.needs_target:
                raise Refusal("sparsity is missing: give sparsity=<a share from 0 to 1>")
        self.schedule: Schedule | None = None
        if self.method.prunes:
            own = {"name": self.method.schedule, "unit": self.method.unit, "ramp": self.method.ramp}
            self.schedule = place_schedule(schedule, own, epochs, steps_per_epoch)
        self.epochs = epochs
        self.adapters: list[adapters.Adapter] = []
        self.epoch: int | None = None
        self.steps = 0
        self.start: int | None = self.schedule.start if self.schedule else None
        self.fraction = 0.0
        self.finished = False
        self.frozen: Frozen | None = None  # what finalize() leaves of quantization
        self.metrics: list[float] = []
        self.quantizer: Quantizer | None = None
        if isinstance(quantize, Int4wOptions):
            self.quantizer = Quantizer(model, quantize, epochs, steps_per_epoch, example_input)
        if self.hooked:
            refuse_second_pruner(model, self.layers)
        if self.method.prunes:
            self.guard = Guard(model, self.layers)
            self.guard.check_numbers()
        self.method.begin(self.layers, Plan(self.target, self.allocation, epochs, steps_per_epoch, seed, self._budget))
        self._handles = hook(model, self._hooked_layers, self.method, self.quantizer) if self.hooked else []

    @property
    def hooked(self) -> bool:
        """Whether the model may compute with anything but its stored weights."""
        return self.method.prunes or self.quantizer is not None

    @property
    def _hooked_layers(self) -> list[Layer]:
        return self.layers if self.method.prunes else []

    @property
    def phase(self) -> str:
        """dense, ramp, full (at the target, still trained) or hard (finalized)."""
        if self.finished:
            return "hard"
        if self.fraction == 0:
            return "dense"
        return "full" if self.fraction == 1 else "ramp"

    @property
    def share(self) -> float:
        """The share of all units that is pruned now."""
        return sum(layer.pruned for layer in self.layers) / sum(layer.units for layer in self.layers)

    @property
    def at_target(self) -> bool:
        """Whether an epoch that ends now counts as one at the target sparsity.

        For methods that learn the shares, this depends on what the last hard mask pruned; a run without a target never
        counts.
        """
        if self.quantizer is not None and not self.quantizer.active:
            return False
        if not self.method.prunes:
            return True
        reached = self.target is not None and self.pattern.reached(self.layers) > self.target - 1e-3
        return self.fraction == 1 and (self.method.exact or reached)

    def start_epoch(self, epoch: int, metric: float | None = None) -> None:
        """Sets the shares of `epoch` (counted from 0) and finds their cuts.

        `metric` is that of the last validation, which schedule.warmup=auto waits for.
        """
        self._alive()
        if self.method.prunes:
            self.guard.check_places()
            self.guard.check_numbers()
        self.epoch = epoch
        if metric is not None:
            self.metrics.append(float(metric))
        if self.quantizer is not None:
            self.quantizer.start_epoch(epoch)
        if self.schedule is None:
            return
        moment = epoch if self.schedule.unit == "epoch" else self.steps
        self._start_by_itself(moment)
        self._advance(moment, self._moment(epoch_start=True))
        self.guard.note_gradients()

    def note_metric(self, metric: float) -> None:
        """Takes a validation metric before the epoch ends; if the share changes by steps, it takes effect at once.

        schedule.warmup=auto then waits for five metrics instead of five epochs.
        """
        self._alive()
        self.metrics.append(float(metric))
        if self.schedule is not None and self.schedule.unit == "step" and self.start is None:
            self._start_by_itself(self.steps)
            if self.start is not None:
                self._advance(self.steps, self._moment())

    def _start_by_itself(self, moment: int) -> None:
        """For schedule.warmup=auto: begins the ramp if the metrics allow it, or at the last moment at which it fits."""
        assert self.schedule is not None
        if self.start is not None:
            return
        by_metrics = starts_after(self.metrics, self.upper_bound)
        if not by_metrics and moment < self.schedule.latest_start:
            return
        if not by_metrics:
            warnings.warn(
                f"schedule.warmup=auto: no start by {self.schedule.unit} {moment}, the last at which the ramp fits",
                stacklevel=3,
            )
        self.start = moment

    def add_adapters(
        self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = (), trained: Sequence[str] = ()
    ) -> list[nn.Parameter]:
        """LoRA under a mask that stays (held, wanda, sparsegpt): freezes the model and returns what is to be trained.

        `targets` are fnmatch patterns of pruned linear layers, none for all; modules named in `trained` stay trainable.
        Make the optimizer of them; `finalize` merges them into the weights, under the mask.
        """
        self._alive()
        with python_words():
            self.adapters = adapters.adapt(
                self.model, self.layers, self.method, rank, alpha, targets, trained, self.method.plan.seed
            )
        return self.adapter_parameters

    @property
    def adapter_parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter."""
        return [one for adapter in self.adapters for one in (adapter.a, adapter.b)]

    def at_once(self) -> None:
        """Prunes to the target without training, if that is not done yet; for methods that make a single cut."""
        self._alive()
        if self.schedule is not None and self.fraction < 1:
            self.epoch = 0
            self._fix_budget()
            self.fraction = 1.0
            self._share_out(self._moment(epoch_start=True))
            self._update(self._moment(epoch_start=True))

    def calibrate(self, batches: Iterable[Any], forward: Forward | None = None) -> int:
        """Prunes to the target at once, as wanda and sparsegpt do; returns the number of calibration samples.

        A batch is a tensor, a tuple of arguments or a dict of keyword arguments (padding does not count if it has an
        `attention_mask`); `forward` replaces the normal way to run a batch. Afterwards the model may be trained under
        its zeros, or finalized. Raises `Refusal` for a method that uses no samples, and if there are none.
        """
        self._alive()
        method = self.method
        with python_words():
            if not isinstance(method, CalibratedMethod):
                raise Refusal(
                    f"method={method.options.name} takes no calibration samples: give method=wanda or method=sparsegpt"
                )
            self.guard.check_places()
            self.guard.check_numbers()
            self._fix_budget()
            for layer in self.layers:
                layer.pruned, layer.active = layer.final, False
            wanted = [layer for layer in self.layers if layer.final]
            samples = calibrate(self.model, wanted, method, batches, forward)
        self.fraction = method.fraction = 1.0
        return samples

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds the method's trainable parameters to the optimizer, in parameter groups of their own.

        Call it before a learning-rate scheduler is made for this optimizer; raises `Refusal` afterwards.
        """
        groups = self.extra_groups()
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(id(extra) not in known for group in groups for extra in group["params"]):
            if any("initial_lr" in group for group in optimizer.param_groups):
                raise Refusal(
                    f"method={self.method.options.name} adds parameters to the optimizer, and a learning-rate "
                    "scheduler knows it already: call pruner.attach(optimizer) first, then make the scheduler"
                )
            for group in groups:
                optimizer.add_param_group(group)
        self.method.optimizer = optimizer

    def extra_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of everything that is trained beside the model."""
        own = self.method.parameter_groups()
        return own + self.quantizer.parameter_groups() if self.quantizer is not None else own

    def penalty(self) -> Tensor | None:
        """The method's term of the loss, a 0-dim tensor, or None."""
        return self.method.penalty()

    def after_backward(self) -> None:
        """To be called between the last backward and the optimizer's step, if the method has `needs_attach`.

        The method's trainable parameters are not part of a DDP-wrapped model, so their gradients are averaged here.
        """
        extras = [extra for group in self.extra_groups() for extra in group["params"]]
        average_gradients([*extras, *self.adapter_parameters])
        if self.quantizer is not None:
            self.quantizer.after_backward()
        if self.schedule is not None:
            self.guard.check_gradients()
            self.method.after_backward(self.layers, self._moment())

    def step(self) -> None:
        """To be called after each optimizer step (once, however many micro-batches it had); finds the new cuts."""
        self._alive()
        if self.epoch is None:
            raise RuntimeError("call pruner.start_epoch(epoch) before the first pruner.step()")
        if self.method.needs_attach and self.method.optimizer is None:
            raise RuntimeError(f"method={self.method.options.name} needs the optimizer: call pruner.attach(optimizer)")
        if self.quantizer is not None and self.quantizer.extras and self.method.optimizer is None:
            raise RuntimeError("quantize.ranges=learned needs the optimizer: call pruner.attach(optimizer)")
        self.steps += 1
        if self.quantizer is not None:
            self.quantizer.step(self.steps, self.epoch)
        if self.schedule is None:
            return
        self.guard.check_places()
        self.guard.check_gradients()
        if self.schedule.unit == "step":
            if self.start is None and self.steps >= self.schedule.latest_start:
                self._start_by_itself(self.steps)
            self._advance(self.steps, self._moment())
        else:
            self._update(self._moment())
        self.guard.note_gradients()

    def _moment(self, **values: Any) -> Moment:
        return Moment(self.epoch or 0, self.steps, self.fraction, **values)

    def _advance(self, moment: int, now: Moment) -> None:
        assert self.schedule is not None
        fraction = self.schedule.fraction(moment, self.start)
        if fraction and not self.fraction:
            self._fix_budget()
        self.fraction = fraction
        now = replace(now, fraction=fraction)
        self._share_out(now)
        self._update(now)

    def _fix_budget(self) -> None:
        """Fixes every layer's final share from the present weights (PDP: one global cut at epoch s)."""
        if self.target is None and self.allocation != "file":
            return
        budget = self.preview_budget()
        for layer, final in zip(self.layers, budget, strict=True):
            layer.final = final

    def preview_budget(self) -> list[int]:
        """The budget that would be fixed from the present weights, in pruned units per layer."""
        return self._budget(self.target, self.allocation)

    def _budget(self, share: float | None, allocation: str | None = None) -> list[int]:
        saliency, comparable = self.method.saliency, self.method.comparable
        wanted = Wanted(allocation or self.allocation, share, saliency, self.allocation_path, comparable)
        return self.pattern.budget(self.layers, wanted)

    @torch.no_grad()
    def _share_out(self, moment: Moment) -> None:
        self.method.share_out(self.layers, moment)

    @torch.no_grad()
    def _update(self, moment: Moment) -> None:
        self.method.update(self.layers, moment)

    @contextmanager
    def hard(self) -> Iterator[None]:
        """While this context is open, the model computes with exact zeros at the present shares, as when evaluated."""
        if self.method.prunes and not self.finished:
            self.guard.check_places()
            self.guard.check_numbers()
        with torch.no_grad():
            self.method.settle(self.layers)
            for layer in self.layers:
                layer.hard_keep = self.method.keep(layer) if layer.active else None
        try:
            yield
        finally:
            for layer in self.layers:
                layer.hard_keep = None

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """Inside, the model computes with floats, masked as they are now."""
        with self.quantizer.suspend() if self.quantizer is not None else nullcontext():
            yield

    @contextmanager
    def baked(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """While this context is open, the stored weights of `model` (or of a copy) are the hard ones."""
        model = self.model if model is None else model
        parameters = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            self.method.settle(self.layers)
            members = [(layer, member) for layer in self.layers if layer.active for member in layer.members]
            adapted = [layer for layer in self.layers if layer.adapter is not None]
            names = {member.parameter for _, member in members} | {layer.parameter for layer in adapted}
            stored = {name: parameters[name].clone() for name in names}
            keeps = {layer.name: self.method.keep(layer) for layer in self.layers if layer.active}
            for layer in adapted:
                parameters[layer.parameter].copy_(layer.adapter.added(parameters[layer.parameter]))
            for layer, member in members:
                index = member.sites[0].index
                parameter = parameters[member.parameter] if index is None else parameters[member.parameter][index]
                write(parameter, self.method.hard_weight(layer, whole(parameter), keeps[layer.name], member))
        try:
            yield model
        finally:
            with torch.no_grad():
                for name, weight in stored.items():
                    parameters[name].copy_(weight)

    @torch.no_grad()
    def finalize(self) -> None:
        """Writes exact zeros at the target into the model and removes every hook; warns if the ramp has not ended."""
        self._alive()
        if self.method.prunes:
            self.guard.check_places()
            self.guard.check_numbers()
            if self.fraction < 1 and self.epochs:
                warnings.warn(
                    f"finalize() at {self.fraction:.0%} of the target: the rest is pruned now, untrained", stacklevel=2
                )
            if not self.fraction:
                self._fix_budget()
            self.fraction = 1.0
            self._share_out(self._moment(final=True))
            self._update(self._moment(final=True))
            self.method.settle(self.layers)
            adapters.merge(self.layers)
            keeps = [(layer, self.method.keep(layer)) for layer in self.layers if layer.active]
            for layer, keep in keeps:
                for member in layer.members:
                    write(member.stored, self.method.hard_weight(layer, member.tensor, keep, member))
            for layer, keep in keeps:
                self.pattern.finish(self.model, layer, keep)
            if more := more_zeros(self.layers):
                warnings.warn(more, stacklevel=2)
        self._unhook()
        self.frozen = self.quantizer.freeze(self.model) if self.quantizer is not None else None
        self.finished = True

    def remove(self) -> None:
        """Removes every hook from the model and leaves its weights as they are; pruning cannot continue."""
        self._unhook()
        self.finished = True

    def report(self) -> pd.DataFrame:
        """One row per prunable layer: name, type, weights, units, pruned, share, target_share, nonzero, density.

        `nonzero` counts the nonzero hard weights; before `finalize` those under the present mask.
        `frame.attrs["prunable_share"]` is `prunable_share`.
        """
        return layer_report(self)

    @property
    def prunable_weights(self) -> dict[str, Tensor]:
        """Every convolution and linear weight that pruning affects, by module name."""
        return {name: weight for layer in self.layers for name, weight in self.pattern.weights(layer).items()}

    @property
    def prunable_share(self) -> float:
        """The share of all weights (parameters of two or more dimensions) that are prunable."""
        return sum(one.numel() for one in self.prunable_weights.values()) / max(1, count_weights(self.model))

    def soft_gap(self) -> pd.DataFrame:
        """The distance between the soft and the hard model: name, cut, temperature, gap, soft_mask (one row per layer).

        `gap` is |effective - hard| / |effective| of the layer's weight (Euclidean norms); `soft_mask` is the share of
        its weights with a mask between 0.1 and 0.9. For use before `finalize`; a layer that is not pruned yet has a gap
        of 0.
        """
        return soft_gap(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how pruning continues; tensors and plain values only."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; raises `Refusal` if it is of another model, method or pattern."""
        load_state(self, state)
        if self.finished:
            self._unhook()
            self.frozen = self.quantizer.freeze(self.model) if self.quantizer is not None else None

    def _unhook(self) -> None:
        unhook(self._hooked_layers, self._handles, self.quantizer)
        if self.method.prunes:
            self.guard.remove()

    def _alive(self) -> None:
        if self.finished:
            raise RuntimeError("the model is hard: finalize() was called, and pruning cannot go on")

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """An independent pruner for a copy of the model; the model itself may be copied along with it."""
        memo[id(self)] = twin = type(self).__new__(type(self))
        hooked, handles, self._handles = bool(self._handles), self._handles, []
        try:
            for key, value in vars(self).items():
                if key != "guard":
                    setattr(twin, key, copy.deepcopy(value, memo))
        finally:
            self._handles = handles
        twin.pattern.forget()
        if self.method.prunes:
            twin.guard = Guard(twin.model, twin.layers)
        if hooked:
            strip(twin.model)
            twin._handles = hook(twin.model, twin._hooked_layers, twin.method, twin.quantizer)
        return twin
