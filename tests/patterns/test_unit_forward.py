"""Masks that the weights of a layer share in a forward of the whole model, in every situation that must work.

`model.forward` is called directly, so that the pruner is not told of a forward of the whole model: then each weight's
mask is computed by itself.
"""

import copy

import pytest
import torch
from channel_models import IMAGE, NOW, Residual, make, train
from small_models import batch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdp import Pruner
from pdp.kernels import cpu as host_kernels
from pdp.patterns import make_pattern


class Checkpointed(Residual):
    """Its blocks are computed again in backward."""

    reentrant = False

    def block(self, function, *inputs):
        return checkpoint(function, *inputs, use_reentrant=self.reentrant)

    def features(self, x):
        x = self.norm0(self.stem(x)).relu()
        one = self.block(lambda x: self.norm1(self.one(x)), x)
        two = self.block(lambda x: self.norm2(self.two(x)), x)
        x = self.block(lambda x: self.norm3(self.deep(x)).relu(), (one + two).relu())
        return x, self.norm4(self.last(x)).relu()


def pruned(model=None, **values):
    torch.manual_seed(1)
    model, pruner = make(model, temperature=1e-2, **values)
    train(model, pruner, range(1))
    return model.eval(), pruner


def gradients(model, outputs):
    nn.functional.cross_entropy(outputs, batch(4)[1]).backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


def assert_same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(mine[name], gradient, rtol=1e-4, atol=1e-6), name


def nodes(outputs):
    """How many nodes that mask lie behind the outputs."""
    found, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [one for one, _ in node.next_functions]
    return sum("MaskUnits" in node.name() or "HostUnits" in node.name() for node in found)


@pytest.mark.parametrize("options", [{}, {"prune_stem": True}])
@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_fewer_nodes_give_what_one_a_place_gives(options, mode):
    model, pruner = pruned(pattern_options=options, temperature_mode=mode, kappa=0.3)
    images, _ = batch(4)
    together, alone = model(images), model.forward(images)
    assert nodes(together) == (len(pruner.layers) if host_kernels.found() is None else 1)
    assert nodes(alone) == sum(len(layer.members) for layer in pruner.layers)
    assert torch.equal(together, alone)
    assert_same(gradients(model, together), gradients(model, alone))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"prune_stem": True}])
def test_checkpointed_blocks_inside_the_forward(reentrant, options):
    model, _ = pruned(Checkpointed(), pattern_options=options)
    model.reentrant = reentrant
    images, _ = batch(4)
    expected = gradients(model, Residual.forward(as_plain(model), images))
    for _ in range(2):
        assert_same(gradients(model, model(images)), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_whole_forward_in_a_checkpoint(reentrant):
    model, _ = pruned()
    images, _ = batch(4)
    expected = gradients(model, model.forward(images))
    outputs = checkpoint(model, images.requires_grad_(), use_reentrant=reentrant)
    assert_same(gradients(model, outputs), expected)


def as_plain(model):
    """The same modules without checkpoints."""
    twin = Residual()
    twin.__dict__["_modules"] = model._modules
    return twin


def test_forwards_may_be_interleaved_with_a_copys_and_nested_in_one_another():
    model, _ = pruned()
    images, _ = batch(4)
    expected, outputs = gradients(model, model(images)), model(images)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    of_twin = twin.forward(images)
    seen = []

    def inner(module, inputs):
        if not seen:
            seen.append(twin(images))
            seen.append(model(images))

    handle = model.deep.register_forward_pre_hook(inner, prepend=True)
    result = model(images)
    handle.remove()
    assert torch.equal(seen[0], of_twin) and torch.equal(seen[1], outputs) and torch.equal(result, outputs)
    for one in (result, seen[1]):
        assert_same(gradients(model, one), expected)
    first, second = model(images), model(images)
    assert_same(gradients(model, second), expected)
    assert_same(gradients(model, first), expected)


def test_where_no_gradients_are_recorded_none_are_lost_later():
    model, _ = pruned()
    images, _ = batch(4)
    expected = gradients(model, model(images))
    with torch.no_grad():
        value = model(images)
    assert torch.equal(value, model(images)) and not value.requires_grad
    handles = [
        model.one.register_forward_pre_hook(lambda *_: torch.set_grad_enabled(False) and None),
        model.one.register_forward_hook(lambda *_: torch.set_grad_enabled(True) and None),
    ]
    partly, alone = gradients(model, model(images)), gradients(model, model.forward(images))
    for handle in handles:
        handle.remove()
    assert partly.keys() == alone.keys() == expected.keys() - {"one.bias"}
    assert_same(partly, alone)
    with torch.no_grad():
        handle = model.stem.register_forward_pre_hook(lambda *_: torch.set_grad_enabled(True) and None)
        outputs = model(images)
        handle.remove()
    assert outputs.requires_grad
    assert_same(gradients(model, outputs), expected)


def test_a_copy_of_a_pruner_evaluated_in_inference_mode_trains_on():
    _, before = pruned()
    model, pruner = make(temperature=1e-2)
    pruner.load_state_dict(before.state_dict())
    model.eval()
    images, _ = batch(4)
    with torch.inference_mode():
        value = model(images)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(images), value)
    assert torch.equal(model(images), value)
    train(model, pruner, range(1, 2))


def test_an_interrupted_forward_ends_with_the_step():
    model, pruner = pruned()
    images, _ = batch(4)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = model.last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(images)
    handle.remove()
    del model.last.__dict__["weight"], model.last.__dict__["bias"]
    pruner.step()
    pruner.layers[0].state["mask"].zero_()
    assert torch.count_nonzero(model.norm1(torch.randn(2, 12, 3, 3))) == 0


def test_a_forward_that_raised_leaves_nothing_behind():
    model, pruner = pruned()
    images, _ = batch(4)
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 5, 8, 8))
    handle = model.last.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(images)
    handle.remove()
    for layer in pruner.layers:
        layer.state["mask"].zero_()
    assert torch.count_nonzero(model.norm1(torch.randn(2, 12, 3, 3))) == 0
    pruner.finalize()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_new_step_is_seen_by_the_next_forward():
    model, pruner = pruned()
    images, _ = batch(4)
    model(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    pruner.step()
    assert torch.equal(model(images), model.forward(images))


@pytest.mark.parametrize("inside", [False, True])
def test_under_autocast_the_layers_see_what_it_would_make_of_the_masked_weight(inside):
    model, _ = pruned()
    images, _ = batch(4)
    seen = {}
    for name in ("one", "norm1", "deep", "last"):
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda module, _, name=name: seen.update({name: module.weight.detach()}))
    model(images)
    exact = dict(seen)
    forward = model.forward
    if inside:  # as accelerate does

        def under_autocast(x):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(x)

        model.forward = under_autocast
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        outputs = model(images)
    assert nodes(outputs) == 2
    assert {name: weight.dtype == torch.bfloat16 for name, weight in seen.items()} == {
        "one": True,
        "norm1": False,
        "deep": True,
        "last": True,
    }
    assert all(torch.equal(weight, exact[name].to(weight.dtype)) for name, weight in seen.items())
    found = gradients(model, outputs.float())
    assert all(one.dtype == torch.float32 and bool(one.any()) for one in found.values())


class PartlyExact(Residual):
    """Its last convolution computes in float32 whatever holds outside."""

    def features(self, x):
        x = self.norm0(self.stem(x)).relu()
        x = self.norm3(self.deep((self.norm1(self.one(x)) + self.norm2(self.two(x))).relu())).relu()
        with torch.autocast("cpu", enabled=False):
            return x, self.norm4(self.last(x.float())).relu()


def test_a_layer_that_leaves_autocast_sees_the_masked_weight_unrounded():
    model, _ = pruned(PartlyExact())
    images, _ = batch(4)
    seen = []
    model.last.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach()))
    expected = gradients(model, model(images))
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, model(images).float())
    assert torch.equal(seen[0], seen[1])
    for name in ("last.weight", "norm4.weight", "norm4.bias"):
        assert float((found[name] - expected[name]).norm()) < 0.2 * float(expected[name].norm()), name


class Bounded(Residual):
    """Keeps the norms of a filter's weights small, in its own forward."""

    how = "not yet"  # as it is when the pruner is made: with it the channels before `last` change what `last` is

    def features(self, x):
        x = self.norm0(self.stem(x)).relu()
        shared = self.norm1(self.one(x)) + self.norm2(self.two(x))
        if self.how != "not yet":
            small = torch.renorm(self.last.weight.detach(), 2, 0, 0.1)
        if self.how == "in place":
            with torch.no_grad():
                self.last.weight.copy_(small)
        elif self.how == "another tensor":
            self.last.weight.data = small
        x = self.norm3(self.deep(shared.relu())).relu()
        return x, self.norm4(self.last(x)).relu()


@pytest.mark.parametrize("how", ["in place", "another tensor"])
def test_a_weight_changed_in_the_forward_is_masked_as_it_is_then(how):
    model, pruner = pruned(Bounded())
    model.how = how
    seen = []
    model.last.register_forward_pre_hook(lambda module, inputs: seen.append(module.weight.detach().clone()))
    images, _ = batch(4)
    model.zero_grad()
    outputs = model(images)
    assert float(seen[-1].flatten(1).norm(dim=1).max()) < 0.1001
    nn.functional.cross_entropy(outputs, batch(4)[1]).backward()
    assert float(model.last.weight.grad.abs().sum()) > 0


def test_a_pattern_used_for_a_second_model_looks_at_the_second_one():
    pattern = make_pattern("channel")

    def cuts(seed, given):
        torch.manual_seed(seed)
        model = Residual()
        pruner = Pruner(model, "pdp", given, sparsity=0.5, epochs=4, schedule=NOW, example_input=IMAGE)
        train(model, pruner, range(1))
        return [float(layer.state["cut"]) for layer in pruner.layers if layer.active]

    first, second = cuts(1, pattern), cuts(2, pattern)
    assert first != second == cuts(2, "channel")


def test_the_backward_of_a_copy_leaves_the_original_alone():
    model, _ = pruned()
    images, _ = batch(4)
    twin = copy.deepcopy(model)
    twin(images).square().sum().backward()
    assert all(one.grad is None for one in model.parameters())
    assert all(one.grad is not None for name, one in twin.named_parameters() if "weight" in name)
