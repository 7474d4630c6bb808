"""Training on texts: precision, recomputation of blocks in backward, learning rates and shares step by step."""

import math

import pytest
import torch
from texts import SMALL_BERT, SMALL_GPT2, opened, write_glue

from pdp.config.compose import compose
from pdp.tasks import build_task
from pdp.training.assembly import make_accelerator, make_model, make_pruner, steps_in_epoch
from pdp.training.optimizers import make_optimizer, rate_factor

pytestmark = pytest.mark.language

NOW = ["schedule.warmup=0", "schedule.ramp=1ep", "recipe.epochs=2", "sparsity=0.75"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The words that name a small data set for BERT and for GPT-2, and small sizes of each."""
    folder = tmp_path_factory.mktemp("texts")
    write_glue(folder / "glue")
    for name, times in (("train", 60), ("test", 9)):
        (folder / f"{name}.txt").write_text("a dog sat on a log and sang a song .\nthe cat sat on the mat .\n" * times)
    return {
        "bert": ["model=bert_tiny", SMALL_BERT, "data=glue", "data.task=stsb", f"data.root={folder / 'glue'}",
                 "recipe.batch_size=4"],
        "gpt2": ["model=gpt2_tiny", SMALL_GPT2, "data=text", f"data.root={folder}", "data.context=16",
                 "data.vocabulary=300", "recipe.batch_size=4"],
    }  # fmt: skip


def pruned(words, method):
    """Task, model and pruner in the second half of its ramp, and a batch."""
    config = compose([*words, *NOW, f"method={method}", "device=cpu"])
    task = build_task(config)
    task.open_data()
    model = make_model(config, task)
    steps = steps_in_epoch(config, task)
    pruner = make_pruner(config, task, model, steps)
    pruner.attach(make_optimizer(model, config.recipe))
    pruner.start_epoch(0)
    for _ in range(math.ceil(steps * 0.75)):
        pruner.step()
    assert method == "str" or 0.4 < pruner.share < 0.76
    return config, task, model, pruner, next(iter(task.train_loader(4, 0, "none", 0)))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_under_bf16_the_mask_is_that_of_fp32_and_the_product_alone_is_rounded(texts, name):
    config, task, model, pruner, batch = pruned([*texts[name], "recipe.precision=bf16"], "pdp")
    seen, outputs = {}, []
    for layer in pruner.layers:
        module = model.get_submodule(layer.name)

        def note(module, given, made, name=layer.name):
            seen[name] = module.weight.detach().clone()
            outputs.append(made.dtype)

        # Before the hook that takes the effective weight away.
        module.register_forward_hook(note, prepend=True)
    accelerator = make_accelerator(config)
    with accelerator.autocast():
        loss = task.loss(model, batch, 0.0)
    assert set(outputs) == {torch.bfloat16} and loss.dtype == torch.float32
    temperature = config.method.temperature
    for layer in pruner.layers:
        weight = layer.weight.detach().double()
        sizes = weight.abs().flatten().sort().values
        cut = float(sizes[layer.pruned - 1] + sizes[layer.pruned]) / 2
        expected = weight * torch.sigmoid((weight**2 - cut**2) / temperature)
        assert seen[layer.name].dtype == torch.float32
        assert torch.allclose(seen[layer.name].double(), expected, rtol=1e-5, atol=1e-7), layer.name
    loss.backward()
    assert all(layer.weight.grad.dtype == torch.float32 for layer in pruner.layers)


@pytest.mark.parametrize("method", ["pdp", "str", "movement"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_blocks_computed_again_see_the_same_effective_weights(texts, name, method):
    gradients = []
    for again in ("false", "true"):
        words = [*texts[name], f"recipe.gradient_checkpointing={again}"]
        _, task, model, pruner, batch = pruned(words, method)
        forwards = []
        first = model.get_submodule(pruner.layers[0].name)
        first.register_forward_hook(lambda module, given, made, calls=forwards: calls.append(module.weight.detach()))
        model.zero_grad()
        task.loss(model, batch, 0.0).backward()
        assert len(forwards) == (2 if again == "true" else 1)
        assert all("weight" not in model.get_submodule(one.name).__dict__ for one in pruner.layers)
        extras = [one for group in pruner.method.parameter_groups() for one in group["params"]]
        gradients.append([one.grad for one in (*model.parameters(), *extras) if one.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for once, twice in zip(*gradients, strict=True):
        assert torch.allclose(once, twice, rtol=1e-5, atol=1e-7)


def test_the_rate_of_fine_tuning_rises_and_falls_by_the_step():
    recipe = compose(["model=bert_base", "data=glue", "data.task=mnli", "prune=none"]).recipe
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.clip, recipe.weight_decay) == (3, 32, 3e-5, 1.0, 0.01)
    total = 3 * 12271
    warmup = round(0.1 * total)
    for step in (0, 1, 1000, warmup - 1, warmup, warmup + 1, total // 2, total - 1):
        expected = (step + 1) / warmup if step < warmup else (total - step) / (total - warmup)
        assert rate_factor(recipe, step, 12271) == pytest.approx(expected, rel=1e-12)
    assert rate_factor(recipe, total - 1, 12271) < 1e-4  # and never below 0


def test_shares_of_three_epochs_by_the_step(texts):
    """glue's recipe: s = 0.16 and the ramp 0.4 of the steps, r = R * min(1, (i - s + 1) / length)."""
    config = compose([*texts["gpt2"], "recipe.epochs=3", "sparsity=0.8", "device=cpu"])
    assert (config.schedule.unit, config.schedule.warmup) == ("step", "0.16")
    task = opened(*texts["gpt2"][1:], model="gpt2_tiny")
    model = make_model(config, task)
    steps = 25
    pruner = make_pruner(config, task, model, steps)
    start, length = math.floor(0.16 * 3 * steps + 0.5), math.floor(0.4 * 3 * steps + 0.5)
    assert (start, length) == (12, 30)
    units = sum(layer.units for layer in pruner.layers)
    for moment in range(3 * steps):
        if moment % steps == 0:
            pruner.start_epoch(moment // steps)
        fraction = min(1.0, max(0.0, (moment - start + 1) / length))
        pruned_now = [layer.pruned for layer in pruner.layers]
        assert pruned_now == [math.floor(layer.final * fraction + 0.5) if fraction else 0 for layer in pruner.layers], (
            moment
        )
        pruner.step()
    assert sum(layer.pruned for layer in pruner.layers) == math.floor(0.8 * units + 0.5)
