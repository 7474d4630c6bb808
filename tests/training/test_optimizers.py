"""Which parameters decay: decided by the type of their module, never by their names."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from pdp.training.optimizers import decay_groups


def test_norms_and_biases_of_mobilenets_do_not_decay():
    # In timm's MobileNet-v1 no norm is called "bn"-something by its parameters alone; STR's rule selected nothing there.
    for model in (timm.create_model("mobilenetv1_100"), mobilenet_v2()):
        decayed, free = (group["params"] for group in decay_groups(model, 1e-4))
        norms = [one for module in model.modules() if isinstance(module, nn.BatchNorm2d) for one in module.parameters()]
        weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        assert {id(one) for one in decayed} == {id(one) for one in weights}
        assert {id(one) for one in norms} < {id(one) for one in free} and len(norms) > 50
        assert len(decayed) + len(free) == len(list(model.parameters()))


# A fused step of torch goes through memory as if there were no gaps.
@pytest.mark.parametrize("layout", ["dense", "turned", "every other column", "the first columns"])
def test_adamw_is_as_its_paper_has_it_however_the_weight_lies_in_memory(layout):
    from pdp.config.compose import compose
    from pdp.training.optimizers import make_optimizer

    torch.manual_seed(0)
    layer, memory = nn.Linear(7, 5).double(), torch.randn(5, 14).double()
    views = {"turned": torch.randn(7, 5).double().t(), "every other column": memory[:, ::2]}
    views["the first columns"] = memory[:, :7]
    if layout in views:
        layer.weight = nn.Parameter(views[layout])
    before = memory.clone()
    config = compose(["model=bert_tiny", "sparsity=0.9", "recipe.lr=0.01", "recipe.weight_decay=0.1"])
    optimizer = make_optimizer(layer, config.recipe)
    weight, first, second = layer.weight.detach().clone(), torch.zeros(5, 7).double(), torch.zeros(5, 7).double()
    for step in range(1, 4):
        layer.weight.grad, layer.bias.grad = torch.randn(5, 7).double(), torch.zeros(5).double()
        gradient = layer.weight.grad.clone()
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight *= 1 - 0.01 * 0.1  # decoupled: of the weight itself, times the rate
        weight -= 0.01 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        assert torch.allclose(layer.weight, weight, rtol=1e-12, atol=1e-14)
    of_others = {"every other column": (memory - before)[:, 1::2], "the first columns": (memory - before)[:, 7:]}
    assert not of_others.get(layout, torch.zeros(1)).any()
