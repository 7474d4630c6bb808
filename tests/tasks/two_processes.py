"""One of two processes that iterate over prepared loaders and write what they saw. Run by test_two_processes.py."""

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from making import configuration
from texts import SMALL_BERT

from pdp.config.compose import compose
from pdp.tasks import build_task
from pdp.tasks.sampling import set_epoch
from pdp.training.assembly import make_model, make_pruner
from pdp.training.evaluation import measure
from pdp.training.optimizers import make_optimizer

TEXTS = ["model=bert_tiny", SMALL_BERT, "data=grammar_nli", "data.limit=203", "data.length_grouping=true",
         "recipe.batch_size=8", "recipe.epochs=2", "sparsity=0.75", "schedule.warmup=0", "schedule.ramp=8it"]  # fmt: skip


def images(accelerator: Accelerator) -> dict:
    """This rank's training images of epoch 4 from batch 2 on, and its evaluation indices."""
    task = build_task(configuration({"name": "digits", "limit": 41}))
    task.open_data()
    loader = accelerator.prepare(task.train_loader(8, 1, "pad_crop_flip", 1))
    set_epoch(loader, 4, 2)
    train = [batch["image"] for batch in loader]
    evaluation = [batch["index"] for batch in accelerator.prepare(task.evaluation_loader("test", 8, 0))]
    return {"train": train, "evaluation": evaluation}


def texts(accelerator: Accelerator) -> dict:
    """An epoch of PDP on texts: what was seen, the masks and weights that came of it, and the test metrics."""
    config = compose(TEXTS)
    task = build_task(config)
    task.open_data()
    model = make_model(config, task)
    pruner = make_pruner(config, task, model, steps_per_epoch=25)
    optimizer = make_optimizer(model, config.recipe)
    pruner.attach(optimizer)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, task.train_loader(8, 1, "none", 0))
    set_epoch(loader, 0)
    pruner.start_epoch(0)
    seen = []
    for batch in loader:
        seen.append({key: batch[key] for key in ("index", "input_ids", "attention_mask")})
        accelerator.backward(task.loss(trained, batch, 0.0))
        pruner.after_backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    keep = {layer.name: pruner.method.keep(layer) for layer in pruner.layers}
    pruner.finalize()
    test = accelerator.prepare(task.evaluation_loader("test", 8, 0))
    metrics = measure(task, model, test, accelerator)
    return {"seen": seen, "keep": keep, "model": model.state_dict(), "metrics": metrics}


def main(folder: str) -> None:
    """Saves what this rank saw and has."""
    settings = DataLoaderConfiguration(split_batches=True, even_batches=False)
    accelerator = Accelerator(cpu=True, dataloader_config=settings)
    saw = images(accelerator) | {"texts": texts(accelerator)}
    torch.save(saw, f"{folder}/{accelerator.process_index}.pt")
    accelerator.end_training()
