"""The dtype in which a layer multiplies its weight."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pdp.layers import Site, compute_dtype

PLAIN = [
    (nn.Linear(6, 4), (2, 6)),
    (nn.Conv1d(6, 4, 3), (2, 6, 8)),
    (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), (2, 6, 8, 8)),
    (nn.Conv3d(6, 4, 3), (2, 6, 8, 8, 8)),
    (nn.ConvTranspose2d(6, 4, 3), (2, 6, 8, 8)),
    (Conv1D(4, 6), (2, 6)),
]


class Standardized(nn.Conv2d):
    """Does more with its weight than convolve, as weight standardization does."""

    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Sampled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class Renamed(nn.Linear):
    """A subclass that changes nothing of the forward."""


def at(module, parameter="weight", caller=None):
    return compute_dtype(Site(module, parameter, caller or module), getattr(module, parameter))


@pytest.mark.parametrize(("module", "shape"), PLAIN, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_in_that_type_gives_what_autocast_gives_bit_for_bit(module, shape, dtype):
    inputs = torch.randn(shape)
    assert at(module) == at(module, "bias") == torch.float32
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        expected = module(inputs)
        assert at(module) == at(module, "bias") == expected.dtype == dtype
        low = {name: parameter.to(at(module, name)) for name, parameter in module.named_parameters()}
        assert torch.equal(torch.func.functional_call(module, low, (inputs,)), expected)
        with torch.autocast("cpu", enabled=False):
            assert at(module) == torch.float32


def test_whatever_reads_a_weight_otherwise_reads_it_as_it_is():
    wrapped = nn.Linear(6, 4)
    wrapped.forward = lambda x: x @ wrapped.weight.T
    attention = nn.MultiheadAttention(8, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module in (Standardized(3, 4, 3), Sampled(3, 4, 3), wrapped, nn.BatchNorm2d(4), nn.Embedding(4, 3)):
            assert at(module) == torch.float32
        assert at(attention, "in_proj_weight") == torch.float32
        assert at(attention.out_proj, caller=attention) == torch.float32
        assert at(nn.Linear(6, 4).double()) == torch.float64
        assert at(nn.Linear(6, 4).half()) == torch.float16
        assert at(Renamed(6, 4)) == torch.bfloat16
