"""One of two processes that go through a prepared loader; writes what it saw. Run by test_two_processes.py."""

import sys

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from making import configuration

from pdp.tasks import build_task
from pdp.tasks.sampling import set_epoch


def main(folder: str) -> None:
    """Saves this rank's training images of epoch 4 from batch 2 on, and its evaluation indices."""
    settings = DataLoaderConfiguration(split_batches=True, even_batches=False)
    accelerator = Accelerator(cpu=True, dataloader_config=settings)
    task = build_task(configuration({"name": "digits", "limit": 41}))
    task.open_data()
    loader = accelerator.prepare(task.train_loader(8, 1, "pad_crop_flip", 1))
    set_epoch(loader, 4, 2)
    train = [batch["image"] for batch in loader]
    evaluation = [batch["index"] for batch in accelerator.prepare(task.evaluation_loader("test", 8, 0))]
    torch.save({"train": train, "evaluation": evaluation}, f"{folder}/{accelerator.process_index}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
