"""scripts/benchmark_sparse_runtime.py computes what the dense layer does, in each runtime; no times are judged."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pdp.errors import Refusal

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import benchmark_sparse_gpu  # noqa: E402
import benchmark_sparse_runtime  # noqa: E402

pytestmark = pytest.mark.slow


def test_every_runtime_computes_the_layer(tmp_path, capsys):
    out = tmp_path / "sparse.json"
    words = ["--sizes", "64x32", "--sparsities", "0.8", "--batches", "3", "--blocks", "4x4", "--rounds", "1"]
    assert benchmark_sparse_runtime.main([*words, "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["results"]
    assert {"torch dense", "torch CSR", "torch BSR 4x4, blocks 4x4", "onnxruntime int8"} <= row["off"].keys()
    for name, off in row["off"].items():
        assert off < (0.02 if "int8" in name else 1e-5), name
    assert row["milliseconds"].keys() == row["off"].keys() and "64x32, 80% zeros, batch 3" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--sizes", "3x64"], ["--batches", "0"], []])
def test_without_a_gpu_or_a_size_that_2_4_takes_it_is_refused_in_a_line(words):
    if not words and torch.cuda.is_available():
        pytest.skip("a GPU is at hand")
    with pytest.raises(Refusal) as refused:
        benchmark_sparse_gpu.main(words)
    assert "\n" not in str(refused.value)
