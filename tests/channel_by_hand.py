"""Channel pruning computed by hand for the methods' tests: a small net, its masked forward and gradients in float64."""

import numpy as np
import torch
from torch import nn

IMAGE = torch.zeros(1, 3, 4, 4)
MADE_BY = {"one": ("one", "two"), "last": ("last",)}  # the convolutions of each coupling
NORMS = {"one": ("norm1", "norm2"), "last": ("norm3",)}
UNITS = {"one": 8, "last": 10}


class Net(nn.Module):
    """A stem, which stays, a sum of two branches, a convolution with a bias, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.one, self.norm1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.norm2 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.last, self.norm3 = nn.Conv2d(8, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 4)
        with torch.no_grad():
            for norm in (self.norm0, self.norm1, self.norm2, self.norm3):
                norm.weight.normal_()
                norm.bias.uniform_(0.1, 1.0)

    def features(self, x):
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm1(self.one(x)) + self.norm2(self.two(x))).relu()
        return x, self.norm3(self.last(x)).relu()

    def forward(self, x):
        return self.head(self.features(x)[1].mean((2, 3)))


def examples(seed=0):
    """Images and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 4, 4, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def filters(model, layer):
    """The weights of each unit's filters, (units, numbers), float64."""
    return np.concatenate(
        [model.get_submodule(one).weight.detach().double().flatten(1).numpy() for one in MADE_BY[layer]], 1
    )


def scales(model, layer):
    """The mean |gamma| of each unit, float64."""
    return np.mean([np.abs(model.get_submodule(one).weight.detach().double().numpy()) for one in NORMS[layer]], 0)


def smallest(values, count):
    """Which units stay when the `count` smallest go."""
    keep = np.ones(len(values), dtype=bool)
    keep[np.argsort(values, kind="stable")[:count]] = False
    return keep


def global_counts(values, pruned):
    """How many units each layer loses when the `pruned` smallest of all go, each layer's largest being safe."""
    free = sorted((one, name) for name, ones in values.items() for one in sorted(ones)[:-1])[:pruned]
    return {name: sum(1 for _, owner in free if owner == name) for name in values}


def gradients(model, images, labels, masks, penalty=None):
    """Loss and gradients in float64 of the net with every tensor of a masked channel multiplied by its mask.

    The masks' own gradients are under the layers' names.
    """
    plain = Net().double()
    plain.load_state_dict({key: value.double() for key, value in model.state_dict().items()})
    leaves = {name: value.detach().clone().requires_grad_() for name, value in plain.named_parameters()}
    masked = dict(leaves)
    for layer, mask in masks.items():
        leaves[layer] = torch.from_numpy(np.asarray(mask, dtype=np.float64)).requires_grad_()
        for module in (*MADE_BY[layer], *NORMS[layer]):
            for key in (f"{module}.weight", f"{module}.bias"):
                if key in masked:
                    masked[key] = masked[key] * leaves[layer].reshape(-1, *[1] * (masked[key].dim() - 1))
    loss = nn.functional.cross_entropy(torch.func.functional_call(plain, masked, (images.double(),)), labels)
    if penalty:
        loss = loss + penalty(leaves)
    loss.backward()
    return float(loss.detach()), {name: leaf.grad.numpy() for name, leaf in leaves.items() if leaf.grad is not None}


def assert_same_gradients(model, expected):
    """Those of the stored parameters, to float32's rounding behind norms."""
    for name, parameter in model.named_parameters():
        scale = np.abs(expected[name]).max() + 1e-2
        assert np.allclose(parameter.grad.double().numpy(), expected[name], atol=1e-3 * scale), name


def assert_zero_channels(model, keeps):
    """Pruned channels put out exact zeros, and all that makes them is zero; kept ones live."""
    model.eval()
    for features, layer in zip(model.features(examples(9)[0]), ("one", "last"), strict=True):
        gone = torch.from_numpy(~np.asarray(keeps[layer]))
        assert torch.count_nonzero(features[:, gone]) == 0
        for module in (*MADE_BY[layer], *NORMS[layer]):
            for parameter in model.get_submodule(module).parameters():
                assert torch.count_nonzero(parameter[gone]) == 0
                assert bool(parameter[~gone].flatten(1).any(1).all() if parameter.dim() > 1 else parameter[~gone].all())
