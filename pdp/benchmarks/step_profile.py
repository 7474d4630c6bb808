"""Profiles a training step: what the device computes, and how long the host takes to launch it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType

from pdp.benchmarks.contender import Contender, synchronize

_SHOWN = 25  # entries of a list, the longest first


def own_kernels() -> set[str]:
    """The names of this project's Triton kernels."""
    try:
        from triton.runtime import JITFunction

        from pdp.kernels.gpu import grouping, masking, selection, unit_masking
    except ImportError:
        return set()
    modules = (grouping, masking, selection, unit_masking)
    return {name for module in modules for name, one in vars(module).items() if isinstance(one, JITFunction)}


def profile_steps(contender: Contender, steps: int = 3) -> dict[str, Any]:
    """Milliseconds and calls per step, averaged over `steps` steps, from PyTorch's profiler.

    `device_busy_ms` is the sum over all kernels and copies, `own_ms` the part of this project's kernels, and `launches`
    the number of kernels and copies. `kernels` and `host` list the longest ones; on the host, the time of an operation
    excludes the operations that it calls. The profiler slows down the host, so `host` only shows what takes long; the
    real time of a step is measured elsewhere.
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if contender.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    contender.step()
    synchronize(contender.device)
    with profile(activities=activities) as log:
        for _ in range(steps):
            contender.step()
        synchronize(contender.device)
    events: list[Any] = list(log.key_averages())
    on_device = [
        one for one in events if one.device_type != DeviceType.CPU and not getattr(one, "is_user_annotation", False)
    ]
    on_host = [one for one in events if one.device_type == DeviceType.CPU]
    own = own_kernels()

    def longest(rows: list[Any], time: Callable[[Any], float]) -> list[dict[str, Any]]:
        ordered = sorted(rows, key=time, reverse=True)[:_SHOWN]
        return [{"name": one.key[:120], "ms": time(one) / steps / 1000, "calls": one.count / steps} for one in ordered]

    def device_time(one: Any) -> float:
        return float(one.self_device_time_total)

    def host_time(one: Any) -> float:
        return float(one.self_cpu_time_total)

    return {
        "device_busy_ms": sum(map(device_time, on_device)) / steps / 1000,
        "own_ms": sum(device_time(one) for one in on_device if one.key in own) / steps / 1000,
        "launches": sum(one.count for one in on_device) / steps,
        "own_launches": sum(one.count for one in on_device if one.key in own) / steps,
        "kernels": longest(on_device, device_time),
        "own_kernels": longest([one for one in on_device if one.key in own], device_time),
        "host": longest(on_host, host_time),
        "torch_threads": torch.get_num_threads(),
    }
