"""The compiled mask against the readable one and the formula in float64, and in a run."""

import math
import os
import shutil

import numpy as np
import pytest
import torch
from test_mask import reference

from pdp import Pruner, Refusal, soft_prune
from pdp.config.command_line import main
from pdp.fused_mask import fused_prune
from pdp.records import read_record

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")), reason="no C++ compiler"
)


def both(weight, cut, temperature, upstream):
    for prune in (soft_prune, fused_prune):
        mine = weight.clone().requires_grad_()
        effective = prune(mine, cut, temperature)
        effective.backward(upstream)
        yield effective.detach(), mine.grad


@needs_compiler
def test_the_compiled_mask_and_gradient_equal_the_readable_ones():
    torch.manual_seed(0)
    last = {"memory_format": torch.channels_last}
    cases = [
        (torch.randn(3), 0.04, 1e-4),
        (torch.randn(64, 37) * 0.05, torch.tensor(0.06), 1e-3),
        (torch.randn(260, 130, 3, 3) * 0.05, 0.06, torch.tensor(1e-3)),
        ((torch.randn(20, 30, 3, 3) * 0.05).contiguous(**last), 0.06, 1e-4),
        ((torch.randn(40, 30) * 0.05).T, 0.06, 1e-4),
        (torch.zeros(5), 0.06, 1e-4),
        (torch.randn(50) * 0.05, math.inf, 1e-4),
        (torch.randn(50) * 0.05, -math.inf, 1e-4),
    ]
    for weight, cut, temperature in cases:
        upstream = torch.randn_like(weight)
        (effective, slope), (fused, fused_slope) = both(weight, cut, temperature, upstream)
        assert fused.shape == weight.shape == fused_slope.shape
        torch.testing.assert_close(fused, effective, rtol=2e-5, atol=1e-9)
        torch.testing.assert_close(fused_slope, slope, rtol=2e-4, atol=1e-5)
    weight, upstream = torch.randn(600, 700) * 0.05, torch.randn(600, 700)
    _, exact = reference(weight.numpy(), 0.06, 1e-3)
    readable, compiled = (
        float(np.abs(slope.numpy() - exact * upstream.numpy()).mean())
        for _, slope in both(weight, 0.06, 1e-3, upstream)
    )
    assert compiled < 2 * readable  # as near to the formula


@needs_compiler
def test_half_precision_and_a_gradient_in_another_layout():
    weight = (torch.randn(20, 30, 3, 3) * 0.05).bfloat16()
    upstream = torch.randn(20, 30, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    (effective, slope), (fused, fused_slope) = both(weight, 0.06, 1e-3, upstream)
    assert fused.dtype == fused_slope.dtype == torch.bfloat16
    torch.testing.assert_close(fused, effective)
    torch.testing.assert_close(fused_slope, slope)


@needs_compiler
def test_a_run_with_the_compiled_mask_ends_like_one_without(tmp_path):
    metrics = []
    for fused in ("false", "true"):
        words = ["model=resnet20", "sparsity=0.8", "data.limit=300", "recipe.epochs=3", f"method.fused={fused}"]
        assert main("train", [*words, f"output_dir={tmp_path / fused}"]) == 0
        (run,) = (tmp_path / fused).glob("*/seed0")
        record = read_record(run)
        metrics.append(record.metric)
        assert record.sparsity == pytest.approx(0.8, abs=1e-4)
    assert abs(metrics[0] - metrics[1]) < 0.2  # rounding alone tells them apart, in a run too short to forget it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pattern": "2:4"}, "method.fused=true has no meaning with prune=nm"),
        ({"sparsity": 0.5, "detach_cut": False}, "drop method.fused or method.detach_cut"),
    ],
)
def test_where_nothing_is_fused_it_is_refused(options, words):
    with pytest.raises(Refusal, match=words):
        Pruner(torch.nn.Linear(8, 8), epochs=10, fused=True, **options)


def test_without_a_compiler_it_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main("train", ["model=resnet20", "sparsity=0.8", "method.fused=true", "dry_run=true"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err
