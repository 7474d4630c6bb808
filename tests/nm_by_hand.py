"""N:M pruning by hand for the methods' tests: groups as index tuples, a small net and its gradients in float64."""

import itertools

import numpy as np
import torch
from torch import nn

LAYER = "1"  # the name of the only prunable layer of `net`


def net(inputs: int = 8, outputs: int = 4) -> nn.Sequential:
    """A stem, which N:M leaves dense, and a convolution over the whole of a 3x3 image, which it prunes."""
    return nn.Sequential(nn.Conv2d(3, inputs, 1, bias=False), nn.Conv2d(inputs, outputs, 3, bias=False), nn.Flatten())


def examples(seed: int = 0, outputs: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 3x3 and targets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 3, 3, generator=generator), torch.randn(6, outputs, generator=generator)


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Half the sum of squared differences."""
    return 0.5 * (outputs - targets).square().sum()


def stored(model: nn.Sequential) -> np.ndarray:
    """The stored weight of the prunable layer, float64, a copy."""
    return model[1].weight.detach().double().numpy().copy()


def by_hand(
    model: nn.Sequential, effective: np.ndarray, images: torch.Tensor, targets: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs with `effective` in the layer's place, and the gradient of `loss` by it; float64."""
    stem = model[0].weight.detach().double().numpy()[:, :, 0, 0]
    inputs = np.einsum("oc,nchw->nohw", stem, images.double().numpy())
    outputs = np.einsum("ochw,nchw->no", effective, inputs)
    return outputs, np.einsum("no,nchw->ochw", outputs - targets.double().numpy(), inputs)


def groups(shape: tuple[int, ...], m: int) -> list[list[tuple[int, ...]]]:
    """Groups of M consecutive input channels, for each output and kernel position by itself."""
    outputs, inputs, *kernel = shape
    return [
        [(output, start + index, *place) for index in range(m)]
        for output in range(outputs)
        for place in itertools.product(*map(range, kernel))
        for start in range(0, inputs, m)
    ]


def largest(weight: np.ndarray, n: int, m: int) -> np.ndarray:
    """The mask of the best of all C(M, N) patterns of each group by the kept sum of |w|."""
    mask = np.zeros(weight.shape, dtype=bool)
    for group in groups(weight.shape, m):
        best = max(itertools.combinations(group, n), key=lambda kept: sum(abs(weight[one]) for one in kept))
        for one in best:
            mask[one] = True
    return mask


def kept_in_groups(weight: torch.Tensor, m: int) -> set[int]:
    """How many numbers that are not zero the groups have."""
    values = weight.detach().numpy()
    return {sum(values[one] != 0 for one in group) for group in groups(values.shape, m)}
