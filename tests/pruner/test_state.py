"""A pruner's state in another pruner: whatever that one did before, and in whatever order with the weights."""

import copy
import io
import pickle

import pytest
import torch
from small_models import batch, case_net, case_pruner, case_step, small_net

from pdp import Pruner
from pdp.errors import Refusal

INT8 = {"quantize": "int8", "quantize_options": {"start": "0.5"}}


def start(method, **values):
    torch.manual_seed(3)
    model = case_net()
    pruner = case_pruner(model, method, "random", epochs=4, **values)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner.attach(optimizer)
    return model, pruner, optimizer


def train(model, pruner, optimizer, epochs=4):
    for epoch in range(epochs):
        pruner.start_epoch(epoch)
        for step in range(3):
            case_step(model, pruner, optimizer, *batch(100 * epoch + step, dtype=torch.float64))


@pytest.mark.parametrize("method", ["rigl", "granet", "pdp", "gmp", "movement", "optg", "str"])
def test_the_state_of_the_beginning_makes_a_used_pruner_begin_again(method):
    model, pruner, optimizer = start(method)
    states = copy.deepcopy((model.state_dict(), pruner.state_dict(), optimizer.state_dict()))
    train(model, pruner, optimizer)
    once = copy.deepcopy(pruner.state_dict())
    for one, state in zip((model, pruner, optimizer), states, strict=True):
        one.load_state_dict(copy.deepcopy(state))
    optimizer.zero_grad()
    train(model, pruner, optimizer)
    again = pruner.state_dict()
    assert again["layers"].keys() == once["layers"].keys()
    for name, layer in once["layers"].items():
        assert layer["state"].keys() == again["layers"][name]["state"].keys()
        for key, value in layer["state"].items():
            assert torch.equal(value, again["layers"][name]["state"][key]), (name, key)


@pytest.mark.parametrize("ranges", ["observed", "learned"])
@pytest.mark.parametrize("weights_first", [True, False])
def test_a_finished_quantized_state_is_the_same_in_either_order(weights_first, ranges):
    values = {"quantize": "int8", "quantize_options": {"start": "0.5", "ranges": ranges}}
    model, pruner, optimizer = start("pdp", **values)
    train(model, pruner, optimizer)
    pruner.finalize()
    images = batch(7, dtype=torch.float64)[0]
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, again, _ = start("pdp", **values)
    parts = [(other, saved["model"]), (again, saved["pruner"])]
    for one, state in parts if weights_first else reversed(parts):
        one.load_state_dict(state)
    with torch.no_grad(), pruner.frozen.applied(model):
        wanted = model.eval()(images)
    with torch.no_grad(), again.frozen.applied(other):
        assert torch.equal(other.eval()(images), wanted)


def test_a_hooked_model_says_that_it_cannot_be_pickled():
    model = small_net()
    pruner = Pruner(model, sparsity=0.5, epochs=2)
    for save in (pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
        with pytest.raises(Refusal, match=r"cannot be pickled: save model.state_dict\(\) and pruner.state_dict\(\)"):
            save(model)
    pruner.finalize()
    assert len(pickle.dumps(model)) > 1000
