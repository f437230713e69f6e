"""What a measurement was made on."""

import os
import platform
import re
from pathlib import Path

from src.benchmarking.record import Device

BOARD = Path("/proc/device-tree/model")  # of single-board computers and phones, such as "Raspberry Pi 4 Model B"


def this_device(name: str | None, emulation: str) -> Device:
    """This machine.

    Args:
        name: What to call it; None: by its board or processor.
        emulation: What of a smaller device is put on, which becomes a part of the name.
    """
    cpu = _board() or _processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    called = _slug(name or cpu)
    return Device(
        name=f"{called}-emulating-{_slug(emulation)}" if emulation else called,
        cpu=cpu,
        cores=cores,
        memory_gb=_memory_gb(),
        system=platform.platform(),
        machine=platform.machine(),
        python=platform.python_version(),
        emulation=emulation,
    )


def _board() -> str:
    return BOARD.read_text(errors="replace").strip("\0 \n") if BOARD.exists() else ""


def _processor() -> str:
    try:
        from src.reproducibility import cpu_name
    except ImportError:  # it needs torch, and this device does not
        return platform.processor() or platform.machine()
    return cpu_name()


def _memory_gb() -> float | None:
    """10^9 bytes; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _slug(text: str) -> str:
    """As a part of a metric's name."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_.") or "device"
