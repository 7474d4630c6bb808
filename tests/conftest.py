"""Settings that all tests share: one thread per process, because several processes run side by side."""

import gc
import os
from contextlib import ExitStack

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from pdp.importing import uncollected

settings.register_profile("project", deadline=None, max_examples=60)
settings.load_profile("project")
torch.set_num_threads(1)
COLLECTION = ExitStack()  # of tests: what they import stays, and to look for garbage in it takes half as long again
COLLECTION.enter_context(uncollected())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_collection_finish():
    COLLECTION.close()


def pytest_sessionfinish():
    gc.freeze()  # pytest and Python look for garbage once more before they end: not in everything that was imported


def pytest_collection_modifyitems(items):
    """Files that take long begin first, so that no worker waits at the end for one that began late."""
    place = {name: number for number, name in enumerate(("slurm", "kills", "language", "slow"))}
    of_file = {}
    for item in items:
        marks = [place[mark.name] for mark in item.iter_markers() if mark.name in place]
        of_file[item.path] = min([of_file.get(item.path, len(place)), *marks])
    items.sort(key=lambda item: of_file[item.path])
