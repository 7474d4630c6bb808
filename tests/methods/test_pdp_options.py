"""PDP's options other than the temperature: how often the cut is found anew, and whether it has a gradient."""

import pytest
import torch
from torch import nn

from pdp import Pruner, find_cut
from pdp.errors import Refusal
from pdp.masks.cut import cut_at


def trained(pattern="random", steps=7, **options):
    """The model, its pruner, and (weight, cut, effective weight) of every step at the full share."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)]
    model = nn.Sequential(*stem, nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 4))
    pruner = Pruner(
        model,
        pattern=pattern,
        sparsity=None if ":" in pattern else 0.5,
        epochs=2,
        schedule={"name": "oneshot", "warmup": "0ep"},
        example_input=torch.zeros(1, 3, 8, 8),
        **options,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for epoch in range(2):
        pruner.start_epoch(epoch)
        for step in range(steps):
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * epoch + step))
            layer = next(layer for layer in pruner.layers if layer.name == "2")
            weight = layer.weight.detach().clone()
            effective = pruner.method.effective_weight(layer, layer.weight).detach().clone()
            seen.append((weight, layer.state["cut"].clone(), effective))
            nn.functional.mse_loss(model(images), torch.ones(4, 4)).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    return model, pruner, seen


def test_a_cut_holds_for_as_many_steps_and_is_new_at_an_epochs_start():
    _, pruner, seen = trained(refresh=3)
    pruned = next(layer.pruned for layer in pruner.layers if layer.name == "2")
    fresh = [bool(cut == cut_at(weight.abs(), pruned)) for weight, cut, _ in seen]
    # Seven steps an epoch: new after the optimizer's steps 3, 6, (7 ends the epoch,) 9 and 12.
    assert fresh == [step in (0, 3, 6, 7, 9, 12) for step in range(14)]
    pruner.finalize()
    assert all(int((layer.weight == 0).sum()) == layer.pruned for layer in pruner.layers)


@pytest.mark.parametrize("pattern", ["random", "2:4", "channel"])
def test_between_two_cuts_the_mask_goes_on_with_the_weights(pattern):
    _, pruner, seen = trained(pattern, refresh=100, temperature_mode="absolute", temperature=1e-2)
    weights, cuts, effectives = zip(*seen[:7], strict=True)
    assert all(torch.equal(cut, cuts[0]) for cut in cuts)
    masks = [effective / weight for effective, weight in zip(effectives, weights, strict=True)]
    assert all(not torch.equal(one, other) for one, other in zip(masks, masks[1:], strict=False))
    if pattern == "random":
        for weight, mask in zip(weights, masks, strict=True):
            expected = torch.sigmoid((weight.double().square() - cuts[0].double().square()) / 1e-2)
            assert torch.allclose(mask.double(), expected, atol=1e-6)


def test_a_cut_with_a_gradient_agrees_with_differences():
    from pdp.methods.pdp import _with_live_cut

    weight = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: _with_live_cut(w, find_cut(w.abs(), 0.4), 0.05), weight)


def test_only_the_two_weights_at_the_cut_feel_it():
    gradients = []
    for detached in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(20, 6, bias=False).double()
        pruner = Pruner(
            model, sparsity=0.5, epochs=1, schedule={"name": "oneshot", "warmup": "0ep"}, temperature=1e-3,
            detach_cut=detached,
        )  # fmt: skip
        pruner.start_epoch(0)
        model(torch.ones(3, 20, dtype=torch.float64)).square().sum().backward()
        gradients.append(model.weight.grad.reshape(-1))
    order = model.weight.detach().abs().reshape(-1).argsort()
    differ = (gradients[0] - gradients[1]).abs() > 1e-9
    assert sorted(differ.nonzero().reshape(-1).tolist()) == sorted(order[59:61].tolist())


def test_what_the_options_refuse():
    model = nn.Linear(8, 4)
    with pytest.raises(Refusal, match="refresh=0"):
        Pruner(model, sparsity=0.5, epochs=10, refresh=0)
    with pytest.raises(Refusal, match="detach_cut=[fF]alse has no meaning with p"):
        Pruner(model, pattern="2:4", epochs=10, detach_cut=False)
