"""Which parameters decay: decided by the type of their module, never by their names."""

import pytest
import timm
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from pdp.errors import Refusal
from pdp.training.layer_decay import layer_groups
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


def rates(model, decay):
    """Of each trained parameter, by name."""
    groups = layer_groups(model, decay_groups(model, 0.1), 1.0, decay)
    of = {id(one): group["lr"] for group in groups for one in group["params"]}
    return {name: of[id(one)] for name, one in model.named_parameters()}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224", "resnet18", "hrnet_w18_small"])
def test_rates_fall_from_block_to_block_as_timms_optimizers_have_them(name):
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    theirs = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(one): group["lr_scale"] for group in theirs for one in group["params"]}
    ours = rates(model, 0.5)
    assert ours == {name: scales[id(one)] for name, one in model.named_parameters()}
    assert len(set(ours.values())) > 5


class Experts(nn.Module):
    """Two blocks of four experts each, between an embedding and a head."""

    def __init__(self, further=0):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4)) for _ in range(2))
        self.more = nn.ModuleList(nn.Linear(3, 3) for _ in range(further))
        self.head = nn.Linear(3, 2, bias=False)


def test_a_longer_list_inside_a_block_is_no_stack_of_blocks():
    blocks = {f"blocks.{block}.{expert}.weight": 0.1 ** (2 - block) for block in range(2) for expert in range(4)}
    assert rates(Experts(), 0.1) == pytest.approx({"embed.weight": 0.001, **blocks, "head.weight": 1.0})


@pytest.mark.parametrize(
    ("model", "said"), [(Experts(2), r"has 2 of them \(blocks, more\)"), (mobilenet_v2(), "has none")]
)
def test_without_one_stack_of_blocks_no_rate_decays(model, said):
    with pytest.raises(Refusal, match=said):
        rates(model, 0.5)
