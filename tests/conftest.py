"""Settings that all tests share: one thread per process, because several processes run side by side."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("project", deadline=None, max_examples=60)
settings.load_profile("project")
torch.set_num_threads(1)
gc.disable()  # what is imported while tests are collected stays; to look for garbage in it takes as long as half of that


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items):
    """Files that take long begin first, so that no worker waits at the end for one that began late."""
    place = {name: number for number, name in enumerate(("slurm", "kills", "language", "slow"))}
    of_file = {}
    for item in items:
        marks = [place[mark.name] for mark in item.iter_markers() if mark.name in place]
        of_file[item.path] = min([of_file.get(item.path, len(place)), *marks])
    items.sort(key=lambda item: of_file[item.path])
