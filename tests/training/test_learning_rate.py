"""A learning rate that falls in steps, against torch's own scheduler."""

import pytest
import torch

from pdp.config.compose import compose
from pdp.training.optimizers import rate_factor


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_rate_in_steps_is_that_of_torch_after_its_warm_up(unit):
    words = ["recipe.lr_schedule=steps", "recipe.lr_drops=[3ep,0.6]", "recipe.epochs=10", "recipe.lr_warmup=2ep"]
    recipe = compose(["model=resnet20", "sparsity=0.5", *words, f"recipe.lr_unit={unit}"]).recipe
    per_epoch = 4
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3 * per_epoch, 6 * per_epoch])
    for step in range(10 * per_epoch):
        factor = rate_factor(recipe, step, per_epoch)
        if step >= 2 * per_epoch:
            assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        elif unit == "epoch":
            assert factor == (step // per_epoch + 1) / 2
        else:
            assert factor == (step + 1) / 8
        optimizer.step()
        theirs.step()


def test_the_rate_falls_no_lower_than_it_may():
    words = ["recipe.lr_schedule=steps", "recipe.lr_drops=[1ep,2ep,3ep]", "recipe.lr=0.1", "recipe.lr_min=0.005"]
    recipe = compose(["model=resnet20", "sparsity=0.5", "recipe.lr_warmup=0", *words]).recipe
    assert [rate_factor(recipe, step, 1) for step in range(4)] == pytest.approx([1, 0.1, 0.05, 0.05])
