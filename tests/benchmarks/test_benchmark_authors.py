"""The authors' operations, beside which methods are timed, keep the weights that ours keep."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pdp.patterns import make_pattern
from pdp.survey import find_layers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import benchmark_authors  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name, pattern, pruned", [("dnw", "random", 300), ("movement", "random", 300), ("srste", "nm", 256)]
)
def test_the_same_weights_stay(name, pattern, pruned):
    torch.manual_seed(0)
    (layer,) = find_layers(nn.Linear(32, 16))
    layer.pruned = pruned
    scores = torch.randn(16, 32)
    ranked = scores if name == "movement" else layer.weight.detach().abs()
    keep = make_pattern(pattern).keep(layer, ranked)
    effective = benchmark_authors.AUTHORS[name][1](layer.weight, pruned, scores)
    assert torch.equal(effective != 0, keep) and torch.equal(effective[keep], layer.weight[keep])


def test_both_are_timed_and_written(tmp_path, capsys):
    out = tmp_path / "authors.json"
    words = ["--model", "resnet20", "--method", "str", "--rounds", "1", "--threads", "1", "--out", str(out)]
    assert benchmark_authors.main(words) == 0 and "str" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["results"]
    assert row["ratio"] == pytest.approx(row["ms"]["ours"][0] / row["ms"]["theirs"][0])
