"""The checks of whole models: a few models, different ones every day, and whether the checks notice errors."""

import datetime
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pdp.benchmarks.model_checks import running, table, weights

RESULTS = Path(__file__).parents[2] / "results" / "models" / "weights.jsonl"
QUICK = 25  # seconds that a model took on a busy machine


def test_a_model_of_the_day_works():
    known = [name for name, line in running.read(RESULTS).items() if line["seconds"] < QUICK]
    known = [name for name in known if running.read(RESULTS)[name]["status"] == "works"] or ["torchvision/resnet18"]
    name = random.Random(datetime.date.today().toordinal()).choice(known)
    found = weights.check(name)
    assert found["status"] == "works", (name, found["wrong"])


class Past(nn.Module):
    """Multiplies by a weight that no mask reaches."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(F.linear(x, self.first._parameters["weight"]))


def test_a_mask_that_does_not_act_is_seen():
    torch.manual_seed(0)
    found = weights.check_model(Past(), torch.randn(4, 8))
    assert found["status"] == "wrong"
    assert "random: the mask does not act in first" in found["wrong"]
    assert "random: soft outputs are not those of the masked weights" in found["wrong"]


def test_lines_are_kept_and_become_a_table(tmp_path):
    path = tmp_path / "weights.jsonl"
    line = {"model": "a/b", "seconds": 1.0, "status": "works", "wrong": [], "input": [3, 32, 32]}
    line |= {
        "random": {"prunable": 0.5, "left": {"an embedding (Embedding)": 2}, "unused": []},
        "2:4": {"refused": "none"},
    }
    path.write_text(json.dumps(line) + "\n")
    lines = running.read(path)
    page = tmp_path / "models.md"
    table.write_table({"weights": lines}, page)
    assert "| a/b | 3x32x32 | works | 50.0% | none | 2 x an embedding (Embedding) | 1 |" in page.read_text()
    running.forget(path, ["a/b"])
    assert running.read(path) == {}
