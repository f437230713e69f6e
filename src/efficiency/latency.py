"""Latency of inference: in milliseconds, and relative to a reference network.

Other work on a machine lengthens all times, so milliseconds of two runs cannot be compared. The
ratio to a reference network can, if both networks meet the same disturbance. Measured on two cores,
idle and under two to five training loops, in some 90 processes (benchmarks/latency_ratio.py
repeats the final choice):

- A CPU thread's clock counts the time that the thread runs. A call of ResNet50 is longer than a
  time slice, so every call is interrupted: the ratio varied between runs by a factor of three on
  the wall clock, and by 6% on the thread's clock.
- The networks alternate call by call: each finds the caches as the other one left them. In blocks
  of some milliseconds the larger network suffers more from other work, and the median ratio of a
  network of a quarter of the width fell from 0.44 to 0.39 with the load.
- The fastest calls are the undisturbed ones. The ratio of their means stays at 0.44 under any load;
  the median ratio of neighbouring calls falls to 0.42, ratios of medians and quartiles to 0.41,
  and a ratio of two single minima depends on chance.

The price: the ratio is for cold caches. A network of 94 MB takes 14.6 times as long as the
reference then, but 20 times if each is called repeatedly, because the reference stays in the cache.
"""

import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

log = logging.getLogger(__name__)
FASTEST = 20  # calls of each network that enter the ratio
ESTIMATOR = (
    f"mean of the {FASTEST} fastest calls over the reference's, the nets alternating call by call"
)
_REMINDER_S = 60.0
_FINE_NS = 10_000  # a coarser thread clock (Windows: 15.6 ms) cannot time a call


class Ratio(NamedTuple):
    """Time of a network relative to a reference network; 2.0 is twice as slow.

    `pairs` are the calls of each network, `clock` is "thread CPU time" or "wall", and the
    milliseconds are means of the fastest calls on that clock.
    """

    value: float
    pairs: int
    clock: str
    net_ms: float
    reference_ms: float


def shared_lock() -> Path:
    """The lock file for all measurements on a machine, of any user."""
    common = Path("/tmp")  # TMPDIR is often different for each user or job
    writable = common.is_dir() and os.access(common, os.W_OK)
    return (common if writable else Path(tempfile.gettempdir())) / "paretoderm-latency.lock"


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file while timing; warn once a minute while another process holds it.

    The system releases the lock of a process that dies. Other work on the machine continues, and so
    do measurements in a container with its own temporary folder. Every user may use the file.
    """
    file_lock = FileLock(lock, mode=0o666)
    timeout = 0.0
    while not file_lock.is_locked:
        try:
            file_lock.acquire(timeout=timeout)
        except Timeout:
            log.warning("another run is measuring latency; waiting for it to release %s", lock)
            timeout = _REMINDER_S
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def timing_conditions(threads: int) -> Iterator[None]:
    """Fixed number of torch threads, no gradients, no garbage collection; restored at the end."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.disable()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()


def warm_up(net: nn.Module, images: Tensor, seconds: float) -> None:
    """Call the network for `seconds`, at least once: libraries load and choose kernels."""
    now = _wall_clock(images.device)
    start = now()
    net(images)
    while now() - start < seconds * 1e9:
        net(images)


def latencies_ms(net: nn.Module, images: Tensor, seconds: float, min_repeats: int) -> np.ndarray:
    """Time consecutive calls with a batch (B, 3, S, S) on the wall clock.

    The network is warm, in evaluation mode and on the device of the images. Timing stops after
    `seconds` of timed work, but not before `min_repeats` calls.

    Returns:
        Milliseconds per call (not per image), in order; on a GPU until it has finished.
    """
    now = _wall_clock(images.device)
    times: list[int] = []
    total = 0
    while total < seconds * 1e9 or len(times) < min_repeats:
        times.append(_time(net, images, now))
        total += times[-1]
    return np.array(times) / 1e6


def latency_ratio(
    net: nn.Module,
    images: Tensor,
    reference: nn.Module,
    reference_images: Tensor,
    seconds: float,
    min_pairs: int,
) -> Ratio:
    """Time a network and a reference network in turns: network, reference, network ...

    Both are warm, in evaluation mode, and on the device of their images. The clock is the CPU time
    of the thread with one torch thread on a CPU; else, where this is not the duration, the wall
    clock, with less certain ratios on a busy machine. Timing stops after `seconds` of timed work of
    both networks on that clock, but not before `min_pairs` calls of each.
    """
    now, clock = _wall_clock(images.device), "wall"
    fine = time.get_clock_info("thread_time").resolution * 1e9 <= _FINE_NS
    if images.device.type == "cpu" and torch.get_num_threads() == 1 and fine:
        now, clock = time.thread_time_ns, "thread CPU time"
    times: list[tuple[int, int]] = []
    total = 0
    while total < seconds * 1e9 or len(times) < min_pairs:
        times.append((_time(net, images, now), _time(reference, reference_images, now)))
        total += sum(times[-1])
    net_ns, reference_ns = np.sort(np.array(times), axis=0)[:FASTEST].mean(axis=0).tolist()
    return Ratio(net_ns / reference_ns, len(times), clock, net_ns / 1e6, reference_ns / 1e6)


def _time(net: nn.Module, images: Tensor, now: Callable[[], int]) -> int:
    start = now()
    net(images)
    return now() - start


def _wall_clock(device: torch.device) -> Callable[[], int]:
    if device.type != "cuda":
        return time.perf_counter_ns

    def after_synchronisation() -> int:
        torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    return after_synchronisation
