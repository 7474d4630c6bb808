"""Transformers whole: two of the day's architectures are checked, and a mistake is seen."""

import datetime
import random

import pytest
import torch
from torch import nn

from pdp.benchmarks.model_checks import language, language_zoo, table

pytestmark = pytest.mark.language


def test_architectures_of_the_day_work():
    draw = random.Random(datetime.date.today().toordinal())
    for name in draw.sample(language_zoo.names(), 2):
        found = language.check(name)
        assert found["status"] in ("works", "refused"), (name, found["wrong"])


class Past(nn.Module):
    """Multiplies by a weight that no mask reaches."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, values):
        return nn.functional.linear(values, self.own._parameters["weight"], self.own.bias)


def test_a_layer_that_no_mask_reaches_is_seen():
    model, example = language_zoo.build("llama")
    block = model.model.layers[0].mlp
    block.down_proj.forward = Past(block.down_proj).forward
    found = language._weights(model, example, "random", "decoder", False)
    assert any("down_proj" in one for one in found["wrong"])


def test_rows_say_what_was_found():
    line = {"model": "a", "seconds": 1.0, "status": "works", "wrong": [], "kind": "decoder", "generate": "equal"}
    line |= {"macs": 10, "macs_all_experts": 20}
    told = {"prunable": 0.5, "left": [["an embedding", 2]]}
    channel = {"parameters": 0.6, "opens": True, "heads": 4, "left": [["its channels are the model's outputs", 1]]}
    text = table.language_rows({"a": line | {"random": told, "2:4": {"refused": "none"}, "channel": channel}})
    assert (
        "| a | decoder | works | 50.0% | none | 4 | 0.60 | from_pretrained | 10 of 20 | equal | 2 x an embedding"
        in text
    )


@torch.no_grad()
def test_drawn_weights_leave_nothing_dead():
    for name in ("gpt_oss", "t5"):
        model, example = language_zoo.build(name)
        answers = language.outputs(model, example)
        assert float(answers.std()) > 1e-3 and all(bool(one.any()) for one in model.parameters())
