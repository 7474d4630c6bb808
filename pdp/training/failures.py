"""Failures of the machine as one line and an exit code: full and read-only disks, lost devices and lost processes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pdp.config.schema import Config
from pdp.errors import Refusal, SavedForRestart, Stopped
from pdp.ranks import process_count
from pdp.runs.directory import DISK_FULL

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_LOST_PROCESS = ("connection closed", "connection reset", "broken pipe", "timed out", "nccl")
_LOST_DEVICE = ("cuda error", "cuda driver error", "hip error", "cudnn error", "cudnn_status", "cublas_status", "nvml")


@contextmanager
def reported_failures(config: Config) -> Iterator[None]:
    """Inside this context, failures of the machine become `Refusal` or `Stopped`; our own bugs pass unchanged."""
    try:
        yield
    except (Refusal, Stopped, SavedForRestart):
        raise
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        raise _of_a_transfer(error) or error from None
    except OSError as error:
        raise _of_the_disk(error, config) or error from None
    except RuntimeError as error:
        raise _of_the_device(error, config) or _of_a_worker(error) or _of_a_process(error) or error from None


def _of_the_disk(error: OSError, config: Config) -> Exception | None:
    place = error.filename or config.output_dir
    if error.errno in DISK_FULL:
        return Stopped(f"the disk is full at {place}: free some, the same command goes on")
    if error.errno == errno.ENAMETOOLONG:
        return Refusal(f"{place}: a name is longer than the file system takes ({error.strerror}): give a shorter one")
    if error.errno in _NOT_WRITABLE:
        return Stopped(f"{place} cannot be written ({error.strerror}): allow it, or give another output_dir=")
    if error.errno in (errno.EIO, errno.ESTALE):
        return Stopped(f"{place} failed ({error.strerror}): the same command goes on from the last checkpoint")
    return None


def _of_the_device(error: RuntimeError, config: Config) -> Exception | None:
    if isinstance(error, torch.OutOfMemoryError):
        return Stopped(
            f"the device has not enough memory ({str(error).splitlines()[0][:120]}): raise recipe.accumulation="
            f"{config.recipe.accumulation} or lower recipe.batch_size={config.recipe.batch_size}"
        )
    words = str(error)
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or any(one in words.lower() for one in _LOST_DEVICE):
        reason = next((line for line in words.splitlines() if line.strip()), type(error).__name__)[:120]
        return Stopped(f"the device failed ({reason}): the same command goes on from the last checkpoint")
    return None


def _of_a_transfer(error: Exception) -> Exception | None:
    """The error to report if a loader process died while it was transferring data; None for other errors."""
    trace, inside = error.__traceback__, False
    while trace is not None:
        inside = inside or "multiprocessing" in trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return _worker_gone(type(error).__name__) if inside else None


def _worker_gone(reason: str) -> Stopped:
    return Stopped(
        f"a process that loads data is gone ({reason[:100]}): the same command goes on from the last checkpoint; "
        "if it was a lack of memory, lower data.workers="
    )


def _of_a_worker(error: RuntimeError) -> Exception | None:
    reason = str(error).splitlines()[0] if str(error) else ""
    if not reason.startswith("DataLoader worker"):
        return None
    return _worker_gone(reason)


def _of_a_process(error: RuntimeError) -> Exception | None:
    words = str(error)
    lost = isinstance(error, torch.distributed.DistError) or any(one in words.lower() for one in _LOST_PROCESS)
    if process_count() == 1 or not lost:
        return None
    reason = words.splitlines()[0][:100]
    return Stopped(f"another process of the run is gone ({reason}): the same command goes on")
