"""What the processes of one run do together: the main one decides, all see the same files."""

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

VISIBLE_SECONDS = 120.0  # a network file system may show a renamed file to other machines only after a minute

Value = TypeVar("Value")


def decided_by_main(accelerator: Accelerator, decide: Callable[[], Value]) -> Value:
    """What `decide` gives on the main process, on all of them; its `Refusal` or `Stopped` is raised on all."""
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
    """Waits for a file that another process has put there; raises `Stopped` where it does not show."""
    end = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > end:
            raise Stopped(f"{path} was written and cannot be seen from {os.uname().nodename} after {seconds:.0f} s")
        time.sleep(0.2)
        try:
            os.listdir(path.parent)  # which makes NFS ask the server again
        except OSError:
            continue


@torch.no_grad()
def share_buffers(accelerator: Accelerator, *models: nn.Module | None) -> None:
    """Gives every process the main one's buffers, such as BatchNorm's averages, which are those that are saved."""
    if accelerator.num_processes == 1:
        return
    for model in models:
        for buffer in model.buffers() if model is not None else ():
            torch.distributed.broadcast(buffer, 0)
