"""recipe.compile=graphs: runs a training step's forward and backward as CUDA graphs, for nets limited by the host.

A step of a small net consists of hundreds of kernels of a few microseconds each, which the host launches more slowly
than a GPU runs them. The kernels are recorded once and then replayed in one launch; they compute exactly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from pdp.pruner.pruner import Pruner

_WARM_UP = 3  # steps before a recording, in which kernels are compiled and selected
Batch = dict[str, Tensor]


class StepGraphs:
    """Forward, loss and backward of a batch as CUDA graphs, one for every state of the pruner that needs its own.

    Tensors that a graph reads are updated in place: weights, cuts, masks, temperatures and the batch. What a graph
    cannot read anew, Python numbers and which layers are masked, is part of the key under which it is kept. `usable`
    says whether a run's steps can be recorded.
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, pruner: Pruner, loss_of: Callable[[nn.Module, Batch], Tensor]
    ) -> None:
        self.model, self.optimizer, self.pruner, self.loss_of = model, optimizer, pruner, loss_of
        self.recorded: dict[Hashable, _Recording] = {}

    def backward(self, batch: Batch) -> Tensor:
        """Returns the loss of the batch and leaves its gradients in the parameters, as eager training would."""
        key = self._key(batch)
        if key not in self.recorded:
            if len(self.recorded) >= 8:
                self.recorded.clear()
            self.recorded[key] = _Recording(self, batch)
        return self.recorded[key].replay(batch)

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters, including those of the pruning method."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]

    def step(self, batch: Batch) -> Tensor:
        """The operations that are recorded: the loss and its backward."""
        loss = self.loss_of(self.model, batch)
        penalty = self.pruner.penalty()
        (loss if penalty is None else loss + penalty).backward()
        return loss.detach()

    def _key(self, batch: Batch) -> Hashable:
        layers = tuple(
            (layer.active, *(value.data_ptr() for value in layer.state.values())) for layer in self.pruner.layers
        )
        shapes = tuple((name, value.shape, value.dtype) for name, value in batch.items())
        return layers, shapes, self.pruner.method.recorded_with()


class _Recording:
    def __init__(self, steps: StepGraphs, batch: Batch):
        self.inputs = {name: value.clone() for name, value in batch.items()}
        parameters = steps.parameters()
        buffers = list(steps.model.buffers())
        before = [one.clone() for one in buffers]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                _forget(parameters)
                steps.step(self.inputs)
            # Undo the warm-up steps' changes to running statistics.
            for one, value in zip(buffers, before, strict=True):
                one.copy_(value)
        torch.cuda.current_stream().wait_stream(beside)
        _forget(parameters)
        self.graph = torch.cuda.CUDAGraph()
        # Lets other threads, such as one that pins batches in memory, use CUDA during the recording.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.loss = steps.step(self.inputs)
        self.gradients = [(one, one.grad) for one in parameters]

    def replay(self, batch: Batch) -> Tensor:
        for name, value in batch.items():
            self.inputs[name].copy_(value, non_blocking=True)
        self.graph.replay()
        for one, gradient in self.gradients:
            one.grad = gradient
        return self.loss


def _forget(parameters: list[nn.Parameter]) -> None:
    for one in parameters:
        one.grad = None


def usable(config: Any, accelerator: Any, pruner: Pruner, plain_objective: bool) -> bool:
    """Whether steps can be recorded: one CUDA device, one batch a step, no loss scaling or teacher, a fit method."""
    return (
        config.recipe.compile == "graphs"
        and accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and config.recipe.accumulation == 1
        and accelerator.scaler is None
        and plain_objective
        and pruner.method.recordable
        and pruner.quantizer is None
    )
