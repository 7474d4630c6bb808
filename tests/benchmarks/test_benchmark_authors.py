"""The authors' operations, beside which methods are timed, keep the weights that ours keep."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pdp.masks.candidates import prune_by_candidates
from pdp.patterns import make_pattern
from pdp.survey import find_layers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import benchmark_authors  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name, pattern, pruned",
    [("dnw", "random", 300), ("movement", "random", 300), ("optg", "random", 300), ("srste", "nm", 256)],
)
def test_the_same_weights_stay(name, pattern, pruned):
    torch.manual_seed(0)
    (layer,) = find_layers(nn.Linear(32, 16))
    layer.pruned = pruned
    scores = torch.randn(16, 32)
    ranked = scores if name in ("movement", "optg") else layer.weight.detach().abs()
    keep = make_pattern(pattern).keep(layer, ranked)
    effective = benchmark_authors.AUTHORS[name][1](layer.weight, pruned, scores)
    assert torch.equal(effective != 0, keep) and torch.equal(effective[keep], layer.weight[keep])


@pytest.mark.parametrize("removed", [0, 2, 5])
def test_what_is_timed_of_lbc_is_what_it_computes(removed):
    torch.manual_seed(0)
    weight = torch.randn(8, 16, 3, 3, requires_grad=True)
    scores = (1 / 3 + torch.randn(weight.numel() // 4, 6) / 100).requires_grad_()
    upstream = torch.randn_like(weight)
    theirs = benchmark_authors.AUTHORS["lbc"][1](weight, removed, scores)
    slopes = torch.autograd.grad(theirs, (weight, scores), upstream)
    alive = (scores.detach() != 0).reshape(8, 3, 3, 4, 6)
    assert set(alive.sum(-1).flatten().tolist()) == {6 - removed}
    pairs = benchmark_authors._PAIRS
    keep = ((alive.float() @ pairs) > 0).flatten(-2).movedim(-1, 1)
    own = scores.detach().reshape(alive.shape).requires_grad_()
    ours = prune_by_candidates(weight, keep, own, alive, pairs, 1)
    assert torch.equal(ours, theirs)
    of_weight, of_scores = torch.autograd.grad(ours, (weight, own), upstream)
    torch.testing.assert_close(of_weight, slopes[0])
    torch.testing.assert_close(of_scores, slopes[1].reshape(alive.shape))


def test_both_are_timed_and_written(tmp_path, capsys):
    out = tmp_path / "authors.json"
    words = ["--model", "resnet20", "--method", "str", "--rounds", "1", "--threads", "1", "--out", str(out)]
    assert benchmark_authors.main(words) == 0 and "str" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["results"]
    assert row["ratio"] == pytest.approx(row["ms"]["ours"][0] / row["ms"]["theirs"][0])
