"""A two-layer net in float64 with its gradients and SGD in plain numpy, and helpers for the tests of all methods."""

import math

import numpy as np
import torch
from torch import nn

from pdp import Pruner

SIZES = (20, 12)  # weights of the two layers
UNITS = sum(SIZES)


def two_layers(seed: int = 0) -> nn.Sequential:
    """Linear(5, 4), tanh, Linear(4, 3), without biases."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return model


def stored(model: nn.Module) -> list[np.ndarray]:
    """Copies of the stored weights."""
    return [parameter.detach().numpy().copy() for parameter in model.parameters()]


def data(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (6, 5) and wanted outputs (6, 3)."""
    generator = np.random.default_rng(step)
    return generator.normal(size=(6, 5)), generator.normal(size=(6, 3))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    """Half of the squared error."""
    inputs, wanted = (torch.from_numpy(one) for one in data(step))
    return (model(inputs) - wanted).square().sum() / 2


def output_of(weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """What the net computes with these weights."""
    return np.tanh(inputs @ weights[0].T) @ weights[1].T


def gradients_of(weights: list[np.ndarray], step: int) -> list[np.ndarray]:
    """dL/dW~ of the weights that the net computes with."""
    inputs, wanted = data(step)
    hidden = np.tanh(inputs @ weights[0].T)
    error = hidden @ weights[1].T - wanted
    return [((error @ weights[1]) * (1 - hidden**2)).T @ inputs, error.T @ hidden]


class HandSgd:
    """v = mu v + g + decay w; w = w - lr v, for a list of arrays."""

    def __init__(self, lr: float, momentum: float = 0.0, decay: float = 0.0):
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.velocity: list[np.ndarray] | None = None

    def step(self, values: list[np.ndarray], gradients: list[np.ndarray], lr: float | None = None) -> list[np.ndarray]:
        if self.velocity is None:
            self.velocity = [np.zeros_like(value) for value in values]
        self.velocity = [
            self.momentum * v + g + self.decay * w for v, g, w in zip(self.velocity, gradients, values, strict=True)
        ]
        rate = self.lr if lr is None else lr
        return [w - rate * v for w, v in zip(values, self.velocity, strict=True)]


def rounded(value: float) -> int:
    """Half up."""
    return math.floor(value + 0.5)


def without_smallest(values: np.ndarray, count: int) -> np.ndarray:
    """1 where a value stays when the `count` smallest go, the first of equals first; shaped like `values`."""
    keep = np.ones(values.size)
    keep[np.argsort(values.reshape(-1), kind="stable")[:count]] = 0
    return keep.reshape(values.shape)


def without_smallest_of_all(values: list[np.ndarray], count: int) -> list[np.ndarray]:
    """`without_smallest` over several arrays at once; the largest of each stays, as no layer is emptied."""
    safe = [np.where(one == one.max(), np.inf, one) if np.ptp(one) else one for one in values]
    keep = without_smallest(np.concatenate([one.reshape(-1) for one in safe]), count)
    ends = np.cumsum([one.size for one in values])[:-1]
    return [part.reshape(one.shape) for part, one in zip(np.split(keep, ends), values, strict=True)]


def zeros_in(weights: list[np.ndarray]) -> list[int]:
    """Exact zeros of each."""
    return [int((weight == 0).sum()) for weight in weights]


def sgd(model: nn.Module, pruner: Pruner, lr: float, momentum: float = 0.0, decay: float = 0.0) -> torch.optim.SGD:
    """SGD over the model's weights with the method's extras attached."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    pruner.attach(optimizer)
    return optimizer


def train_step(model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, step: int) -> list[np.ndarray]:
    """One step of the loop; gives the weights' gradients as autograd left them."""
    optimizer.zero_grad()
    loss, penalty = loss_of(model, step), pruner.penalty()
    (loss if penalty is None else loss + penalty).backward()
    gradients = [parameter.grad.numpy().copy() for parameter in model.parameters()]
    pruner.after_backward()
    optimizer.step()
    pruner.step()
    return gradients


def extras(pruner: Pruner) -> list[np.ndarray]:
    """Copies of the trainable extras, layer by layer."""
    return [pruner.method.extras[layer.name].detach().numpy().copy() for layer in pruner.layers]


def masks(pruner: Pruner) -> list[np.ndarray]:
    """The masks that hold, as 0 and 1."""
    return [layer.state["keep"].numpy().astype(float) for layer in pruner.layers]


def close(ours, theirs, **values) -> bool:
    """Whether two lists of arrays agree."""
    values = {"rtol": 1e-6, "atol": 1e-9} | values
    return all(np.allclose(one, other, **values) for one, other in zip(ours, theirs, strict=True))


def computed_with(model: nn.Module, weights: list[np.ndarray]) -> bool:
    """Whether the model's output is that of these weights."""
    inputs, _ = data(99)
    with torch.no_grad():
        output = model(torch.from_numpy(inputs)).numpy()
    return np.allclose(output, output_of(weights, inputs), rtol=1e-6, atol=1e-9)
