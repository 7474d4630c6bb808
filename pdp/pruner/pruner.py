"""The pruner: applies a method to a model and manages its phases, dense -> ramp -> full -> hard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pdp.layers import Layer
from pdp.methods import make_method
from pdp.methods.method import Plan
from pdp.methods.options import MethodOptions
from pdp.patterns import make_pattern
from pdp.patterns.pattern import Pattern
from pdp.pruner import adapters, copying, extra_parameters, hard, progress, report
from pdp.pruner.budget import allocation_of, budget_of, check_target, keep_least
from pdp.pruner.calibration import Forward, prune_calibrated
from pdp.pruner.counted import Counted
from pdp.pruner.gather import gather
from pdp.pruner.guard import Guard, refuse_second_pruner
from pdp.pruner.keywords import Shares, check_effects, check_texts, check_values
from pdp.pruner.parts import check_alive
from pdp.pruner.shadow import hook
from pdp.pruner.state import load_state, state_of
from pdp.quantize.frozen import Frozen
from pdp.quantize.options import QuantizeOptions, make_options
from pdp.quantize.quantizer import make_quantizer
from pdp.schedule.shapes import Schedule
from pdp.spoken import python_words
from pdp.survey import count_weights, survey

if TYPE_CHECKING:
    import pandas as pd


class Pruner:
    """Prunes `model` in place during training.

    Call `start_epoch` before each epoch, `step` after each optimizer step and `finalize` at the end. Raises `Refusal`
    (a `ValueError`) for arguments that do not fit together or have no effect; warns where a schedule, an
    allocation or a temperature, which are often the same for several methods and patterns, changes nothing.

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
            check_values(sparsity, epochs, steps_per_epoch, least_density, upper_bound, seed, allocation, ends)
            check_texts(exclude=exclude, own_exclude=own_exclude, include=include)
            grid = make_options(quantize, **(quantize_options or {}))
            self.model = model
            self.pattern = make_pattern(pattern, **(pattern_options or {}))
            self.method = make_method(method, self.pattern, **options)
            shares = Shares(allocation, allocation_path, least_density, ends)
            check_effects(self.method, self.pattern, schedule, shares, options, pattern_options or {})
            # `skipped` gives the reason why each other weight of the model stays dense.
            found, others = survey(model, exclude, own_exclude, include)
            self.layers, self.skipped = gather(model, self.pattern, self.method, found, others, example_input)
            keep_least(self.layers, least_density, ends)
            # The sparsity that produced the model's own zeros does not determine the layers' shares.
            self.target = None if self.method.locked else self.pattern.target_of(sparsity)
            self.allocation = allocation_of(self.pattern, self.method, allocation)
            self.allocation_path = allocation_path
            self.upper_bound = upper_bound
            check_target(self)
            self.schedule = progress.schedule_of(self.method, schedule, epochs, steps_per_epoch)
            self.epochs = epochs
            self.adapters: list[adapters.Adapter] = []
            self.counted = Counted(epochs, steps_per_epoch)
            self.epoch: int | None = None
            self.steps = 0
            self.start: int | None = self.schedule.start if self.schedule else None
            self.fraction = 0.0
            self.finished = False
            self.frozen: Frozen | None = None  # what finalize() leaves of quantization
            self.metrics: list[float] = []
            self.quantizer = make_quantizer(model, grid, epochs, steps_per_epoch, example_input)
            if self.hooked:
                refuse_second_pruner(model, self.layers)
            if self.method.prunes:
                self.guard = Guard(model, self.layers)
                self.guard.check_numbers()
            plan = Plan(self.target, self.allocation, epochs, steps_per_epoch, seed, partial(budget_of, self))
            self.method.begin(self.layers, plan)
            self.handles = hook(model, self.hooked_layers, self.method, self.quantizer) if self.hooked else []
        if calibration is not None:
            self.calibrate(calibration)

    @property
    def hooked(self) -> bool:
        """Whether the model may compute with anything but its stored weights."""
        return self.method.prunes or self.quantizer is not None

    @property
    def hooked_layers(self) -> list[Layer]:
        """The layers whose weight is computed at each use."""
        return self.layers if self.method.prunes else []

    @property
    def phase(self) -> str:
        """dense, ramp, full (at the target, still trained) or hard (finalized)."""
        return progress.phase_of(self)

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
        return progress.at_target(self)

    def start_epoch(self, epoch: int, metric: float | None = None) -> None:
        """Sets the shares of `epoch` (counted from 0) and finds their cuts.

        `metric` is that of the last validation, which schedule.warmup=auto waits for.
        """
        progress.start_epoch(self, epoch, metric)

    def note_metric(self, metric: float) -> None:
        """Takes a validation metric before the epoch ends; if the share changes by steps, it takes effect at once.

        schedule.warmup=auto then waits for five metrics instead of five epochs.
        """
        progress.note_metric(self, metric)

    def add_adapters(
        self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = (), trained: Sequence[str] = ()
    ) -> list[nn.Parameter]:
        """LoRA under a mask that stays (held, wanda, sparsegpt): freezes the model and returns what is to be trained.

        `targets` are fnmatch patterns of pruned linear layers, none for all; modules named in `trained` stay trainable.
        Make the optimizer of them; `finalize` merges them into the weights, under the mask.
        """
        check_alive(self)
        seed = self.method.plan.seed
        with python_words():
            self.adapters = adapters.adapt(self.model, self.layers, self.method, rank, alpha, targets, trained, seed)
        return self.adapter_parameters

    @property
    def adapter_parameters(self) -> list[nn.Parameter]:
        """A and B of every adapter."""
        return extra_parameters.adapter_parameters(self)

    def at_once(self) -> None:
        """Prunes to the target without training, if that is not done yet; for methods that make a single cut."""
        progress.at_once(self)

    def calibrate(self, batches: Iterable[Any], forward: Forward | None = None) -> int:
        """Prunes to the target at once, as wanda and sparsegpt do; returns the number of calibration samples.

        A batch is a tensor, a tuple of arguments or a dict of keyword arguments (padding does not count if it has an
        `attention_mask`); `forward` replaces the normal way to run a batch. Afterwards the model may be trained under
        its zeros, or finalized. Raises `Refusal` for a method that uses no samples, and if there are none.
        """
        return prune_calibrated(self, batches, forward)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds the method's trainable parameters to the optimizer, in parameter groups of their own.

        Call it before a learning-rate scheduler is made for this optimizer; raises `Refusal` afterwards.
        """
        extra_parameters.attach(self, optimizer)

    def extra_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups of everything that is trained beside the model."""
        return extra_parameters.extra_groups(self)

    def penalty(self) -> Tensor | None:
        """The method's term of the loss, a 0-dim tensor, or None."""
        return self.method.penalty()

    def after_backward(self) -> None:
        """To be called between the last backward and the optimizer's step, if the method has `needs_attach`.

        The method's trainable parameters are not part of a DDP-wrapped model, so their gradients are averaged here.
        """
        extra_parameters.after_backward(self)

    def step(self) -> None:
        """To be called after each optimizer step (once, however many micro-batches it had); finds the new cuts."""
        progress.step(self)

    def preview_budget(self) -> list[int]:
        """The budget that would be fixed from the present weights, in pruned units per layer."""
        return budget_of(self, self.target)

    @contextmanager
    def hard(self) -> Iterator[None]:
        """While this context is open, the model computes with exact zeros at the present shares, as when evaluated."""
        with hard.hard_masks(self):
            yield

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """Inside, the model computes with floats, masked as they are now."""
        with self.quantizer.suspend() if self.quantizer is not None else nullcontext():
            yield

    @contextmanager
    def baked(self, model: nn.Module | None = None) -> Iterator[nn.Module]:
        """While this context is open, the stored weights of `model` (or of a copy) are the hard ones."""
        model = self.model if model is None else model
        with hard.baked_weights(self, model):
            yield model

    def finalize(self) -> None:
        """Writes exact zeros at the target into the model and removes every hook; warns if the ramp has not ended."""
        hard.finalize(self)

    def remove(self) -> None:
        """Removes every hook from the model and leaves its weights as they are; pruning cannot continue."""
        hard.release(self)
        self.finished = True

    def report(self) -> pd.DataFrame:
        """One row per prunable layer: name, type, weights, units, pruned, share, target_share, nonzero, density.

        `nonzero` counts the nonzero hard weights; before `finalize` those under the present mask.
        `frame.attrs["prunable_share"]` is `prunable_share`.
        """
        return report.layer_report(self)

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
        return report.soft_gap(self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides how pruning continues; tensors and plain values only."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; raises `Refusal` if it is of another model, method or pattern."""
        load_state(self, state)
        if self.finished:
            hard.release(self)
            if "frozen" in state:  # not from the weights, which may be loaded later
                self.frozen = Frozen(**state["frozen"])
            else:
                hard.freeze(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruner:
        """An independent pruner for a copy of the model; the model itself may be copied along with it."""
        return copying.twin_of(self, memo)
