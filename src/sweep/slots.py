"""The places of one machine where trials can run: its GPUs, or its cores, shared out."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from src.errors import ConfigError
from src.sweep.task import Slot

NO_GPU = ""  # as CUDA_VISIBLE_DEVICES: the trial sees none


def local_slots(
    n_jobs: int | None,
    devices: Literal["auto"] | Sequence[int | str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
) -> list[Slot]:
    """The slots of this machine, as it is now.

    Args:
        n_jobs: How many trials at once; None: as many as the GPUs take, 1 without a GPU.
        devices: Ids of GPUs as CUDA_VISIBLE_DEVICES takes them; "auto": all that are visible; None or empty: none,
            the trials run on the CPU.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads a trial; "auto": the usable cores, shared out; None: torch's choice.

    Raises:
        ConfigError: An impossible number, or a GPU that is not there.
    """
    visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), gpu_count()) if devices else []
    return make_slots(n_jobs, chosen_devices(devices, visible), trials_per_device, threads, usable_cores())


def make_slots(
    n_jobs: int | None,
    devices: Sequence[str] | None,
    trials_per_device: int,
    threads: Literal["auto"] | int | None,
    cores: int,
) -> list[Slot]:
    """Share devices and cores out.

    Args:
        n_jobs: How many trials at once; None: as many as the devices take, 1 without a device.
        devices: Ids of GPUs; empty: there is none; None: the trials must not see one.
        trials_per_device: How many trials share a GPU.
        threads: CPU threads a trial; "auto": cores / slots; None: torch's choice.
        cores: That can be used.

    Returns:
        Neighbouring slots lie on different devices, so that few trials spread over all of them.

    Raises:
        ConfigError: A number below 1, or more trials at once than the devices take.
    """
    for key, value in (("n_jobs", n_jobs), ("trials_per_device", trials_per_device), ("threads", threads)):
        if isinstance(value, int) and value < 1:
            raise ConfigError(key, f"must be at least 1, but got {value}")
    room = len(devices or ()) * trials_per_device
    count = n_jobs or room or 1
    if devices and count > room:
        raise ConfigError(
            "n_jobs",
            f"must be at most {room} (GPUs: {len(devices)}, trials_per_device: {trials_per_device}), but got {n_jobs}; "
            "raise trials_per_device, or set devices=null for the CPU",
        )
    share = max(1, cores // count) if threads == "auto" else threads
    absent = NO_GPU if devices is None else None
    return [Slot(number, devices[number % len(devices)] if devices else absent, share) for number in range(count)]


def chosen_devices(
    devices: Literal["auto"] | Sequence[int | str] | None, visible: Sequence[str]
) -> Sequence[str] | None:
    """The GPUs that the trials use, None if they must not use any.

    Args:
        devices: What the user asks for.
        visible: Ids of the GPUs that this process may use.

    Raises:
        ConfigError: One is asked for that is not visible, or twice.
    """
    if not devices:
        return None
    if devices == "auto":
        return visible
    if isinstance(devices, str):
        raise ConfigError("devices", f"must be auto, null or a list of GPU ids, but got {devices}")
    chosen = [str(device) for device in devices]
    if len(set(chosen)) < len(chosen):
        raise ConfigError("devices", f"names a GPU twice: {', '.join(chosen)}; set trials_per_device instead")
    unknown = [device for device in chosen if device not in visible]
    if unknown:
        there = f"visible are {', '.join(visible)}" if visible else "no GPU is visible"
        raise ConfigError("devices", f"GPU {unknown[0]} cannot be used here, {there}")
    return chosen


def visible_devices(variable: str | None, count: int) -> list[str]:
    """Ids of the GPUs that a process sees.

    Args:
        variable: The value of CUDA_VISIBLE_DEVICES, None if it is not set.
        count: How many the process sees.
    """
    if variable is None:
        return [str(number) for number in range(count)]
    # CUDA reads the ids up to the first that does not exist; `count` already knows where that is
    return [name.strip() for name in variable.split(",") if name.strip()][:count]


def gpu_count() -> int:
    """How many GPUs this process sees, without starting CUDA in it.

    torch asks the driver's management library (NVML), which opens no device. Even where it has to ask CUDA itself, the
    trials do not suffer: they descend from the fork server, which is a process of its own, and not from this one.
    """
    import torch

    return torch.cuda.device_count()


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the time that its control group (a container's) gets."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota = cores_of_quota(Path("/sys/fs/cgroup/cpu.max").read_text())
    except OSError:
        quota = None
    return max(1, min(affine, math.ceil(quota))) if quota else affine


def cores_of_quota(text: str) -> float | None:
    """How many cores' time the text of a control group's `cpu.max` grants, None if there is no limit."""
    granted, _, period = text.strip().partition(" ")
    return int(granted) / int(period) if granted.isdigit() and period.isdigit() and int(period) else None
