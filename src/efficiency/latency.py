"""How long inference takes: on the clock, and relative to a reference net.

A machine that has other things to do stretches every time on the clock, so no figure in milliseconds can be compared between two
runs. The ratio to a reference net can, if both nets see the same disturbance. Of what was tried on two cores
under two training loops and more (ten processes a net; benchmarks/latency_ratio.py repeats it), this moved least:

- The nets alternate call by call. In blocks of a few milliseconds (or behind an untimed call that warms the caches) the larger net
  loses more of its cache to the neighbours than the smaller one, and the ratio leans with the load: from 0.44 on a quiet machine
  to 0.39 on a busy one. Call by call each net finds the caches as the other left them, busy or not: 0.44 and 0.44.
- The clock of one CPU thread is the time that the thread ran. A call of ResNet50 is longer than the scheduler's time slice, so
  every one is interrupted, and on the wall clock the ratio of two runs differed by a factor of three.
- The median of the ratios of neighbouring calls. Ratios of medians, low quantiles, minima or sums move 2 to 10 times as much,
  because the load changes within a measurement.

The price: it is the ratio of nets that find cold caches. A net of 94 MB is 14 times as slow as the reference there, and 20 times if
each is called again and again, since the reference then stays in the cache.
"""

import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

log = logging.getLogger(__name__)

ESTIMATOR = "median of the ratios of neighbouring calls, the nets alternating call by call"
_REMINDER_S = 60.0
_FINE_NS = 10_000  # a coarser thread clock (Windows: 15.6 ms) cannot time a call


@dataclass(frozen=True)
class Ratio:
    """Time of a net relative to a reference net.

    Attributes:
        value: 2.0 is twice as slow as the reference.
        pairs: Calls of each net.
        clock: "thread CPU time" or "wall".
        net_ms: The net's median on that clock, in this alternation.
        reference_ms: The reference's.
    """

    value: float
    pairs: int
    clock: str
    net_ms: float
    reference_ms: float


def shared_lock() -> Path:
    """The file by which all measurements on a machine, whoever runs them, wait for each other."""
    # not TMPDIR if it can be helped: that is often one folder a user or a job
    common = Path("/tmp")
    folder = common if common.is_dir() and os.access(common, os.W_OK) else Path(tempfile.gettempdir())
    return folder / "paretoderm-latency.lock"


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file while timing; wait for as long as another holds it, and say so every minute.

    The system frees the lock of a process that dies. Other work on the machine is not kept away, and neither are measurements in a
    container that has a temporary folder of its own.

    Args:
        lock: Such as `shared_lock()`. Every user may use it (mode 0666).
    """
    held = FileLock(lock, mode=0o666)
    patience = 0.0
    while not held.is_locked:
        try:
            held.acquire(timeout=patience)
        except Timeout:
            log.warning("another run is measuring latency; waiting for it to release %s", lock)
            patience = _REMINDER_S
    try:
        yield
    finally:
        held.release()


@contextmanager
def timing_conditions(threads: int) -> Iterator[None]:
    """A fixed number of torch threads, no gradients, no garbage collection; all as before at the end."""
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
    """Call the net for `seconds`, at least once: libraries load, choose kernels and fill their caches."""
    now = _wall(images.device)
    began = now()
    net(images)
    while now() - began < seconds * 1e9:
        net(images)


def latencies_ms(net: nn.Module, images: Tensor, seconds: float, min_repeats: int) -> np.ndarray:
    """Time calls that follow each other, on the wall clock.

    Args:
        net: In eval mode, warm, on the device of `images`.
        images: A batch (B, 3, S, S).
        seconds: Stop after so much timed work ...
        min_repeats: ... but not before so many calls.

    Returns:
        Milliseconds a call (not an image), in order; on a GPU until it has finished.
    """
    now = _wall(images.device)
    times: list[int] = []
    spent = 0
    while spent < seconds * 1e9 or len(times) < min_repeats:
        times.append(_time(net, images, now))
        spent += times[-1]
    return np.array(times) / 1e6


def latency_ratio(
    net: nn.Module, images: Tensor, reference: nn.Module, reference_images: Tensor, seconds: float, min_pairs: int
) -> Ratio:
    """Time a net and a reference net in turns: net, reference, net, reference ...

    With one torch thread on a CPU the clock is the thread's CPU time; with more threads or on a GPU, where that is not the
    duration, it is the wall clock, and the ratio is less sure on a busy machine.

    Args:
        net: In eval mode, warm, on the device of `images`.
        images: Its input.
        reference: Likewise.
        reference_images: Its input.
        seconds: Stop after so much timed work on that clock, both nets together ...
        min_pairs: ... but not before so many calls of each.
    """
    now, clock = _fairest_clock(images.device)
    times: list[tuple[int, int]] = []
    spent = 0
    while spent < seconds * 1e9 or len(times) < min_pairs:
        times.append((_time(net, images, now), _time(reference, reference_images, now)))
        spent += sum(times[-1])
    nets, references = np.array(times, dtype=float).T
    # each call against the one before and the one after it, so that it does not matter who goes first
    value = np.median(np.concatenate([nets / references, nets[1:] / references[:-1]]))
    return Ratio(float(value), len(times), clock, float(np.median(nets)) / 1e6, float(np.median(references)) / 1e6)


def _time(net: nn.Module, images: Tensor, now: Callable[[], int]) -> int:
    began = now()
    net(images)
    return now() - began


def _wall(device: torch.device) -> Callable[[], int]:
    if device.type != "cuda":
        return time.perf_counter_ns

    def after_the_gpu() -> int:
        torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    return after_the_gpu


def _fairest_clock(device: torch.device) -> tuple[Callable[[], int], str]:
    fine = time.get_clock_info("thread_time").resolution * 1e9 <= _FINE_NS
    if device.type == "cpu" and torch.get_num_threads() == 1 and fine:
        return time.thread_time_ns, "thread CPU time"
    return _wall(device), "wall"
