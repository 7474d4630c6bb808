"""Coordination of a run's processes: the main process decides, and all see the same files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from pdp.errors import Refusal, Stopped

VISIBLE_SECONDS = 120.0  # a network file system may take a minute to show a renamed file to other machines

Value = TypeVar("Value")


def decided_by_main(accelerator: Accelerator, decide: Callable[[], Value]) -> Value:
    """Calls `decide` on the main process and returns its result on all; a `Refusal` or `Stopped` is raised on all."""
    if accelerator.num_processes == 1:
        return decide()
    found: list = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = decide()
        except (Refusal, Stopped) as error:
            found[1] = error
    value, ended = broadcast_object_list(found)
    if ended is not None:
        raise ended
    return value


def wait_until_visible(path: Path, seconds: float = VISIBLE_SECONDS) -> None:
    """Waits for a file that another process has written; raises `Stopped` if it does not appear."""
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise Stopped(f"{path} was written and cannot be seen from {os.uname().nodename} after {seconds:.0f} s")
        time.sleep(0.2)
        try:
            os.listdir(path.parent)  # makes NFS ask the server again
        except OSError:
            continue


@torch.no_grad()
def share_buffers(accelerator: Accelerator, *models: nn.Module | None) -> None:
    """Copies the main process's buffers, such as BatchNorm's averages, to every process: those are the ones saved."""
    if accelerator.num_processes == 1:
        return
    for model in models:
        for buffer in model.buffers() if model is not None else ():
            torch.distributed.broadcast(buffer, 0)
