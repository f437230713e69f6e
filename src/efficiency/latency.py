"""How long inference takes: on the clock, and relative to a reference net.

A machine that has other things to do stretches every time on the clock, so figures in milliseconds
from two runs cannot be compared. The ratio to a reference net can, if both nets meet the same
disturbance. Tried on two cores, quiet and under two to five training loops, some 90 processes in
all (benchmarks/latency_ratio.py repeats the final
choice):

- The clock of one CPU thread counts the time that the thread ran. A call of ResNet50 is longer than
a time slice, so
  each one is interrupted, and on the wall clock its ratio differed between runs by a factor of
  three; on the thread's clock by 6%.
- The nets alternate call by call: each finds the caches as the other left them, whatever else runs.
In blocks of some
  milliseconds the larger net suffers more from neighbours than the smaller one, and the median
  ratio of a net that is four times narrower leant from 0.44 to 0.39 with the load.
- The fastest calls of each net are those that nobody disturbed. The ratio of their means stays at
0.44 quiet or busy;
  the median ratio of neighbouring calls sinks to 0.42, ratios of medians and quartiles to 0.41, and
  a ratio of two single minima depends on luck.

The price: it is the ratio of nets that find cold caches. A net of 94 MB takes 14.6 times as long as
the reference then, and 20 times if each is called again and again, since the reference stays in the
cache.
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
FASTEST = 20  # calls of each net that make the ratio
ESTIMATOR = (
    f"mean of the {FASTEST} fastest calls over the reference's, the nets alternating call by call"
)
_REMINDER_S = 60.0
_FINE_NS = 10_000  # a coarser thread clock (Windows: 15.6 ms) cannot time a call


@dataclass(frozen=True)
class Ratio:
    """Time of a net relative to a reference net.

    Attributes:
        value: 2.0 is twice as slow as the reference.
        pairs: Calls of each net.
        clock: "thread CPU time" or "wall".
        net_ms: Mean of the net's fastest calls on that clock, in this alternation.
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
    folder = (
        common if common.is_dir() and os.access(common, os.W_OK) else Path(tempfile.gettempdir())
    )
    return folder / "paretoderm-latency.lock"


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file while timing; wait for as long as another holds it, and say so every minute.

    The system frees the lock of a process that dies. Other work on the machine is not kept away,
    and neither are measurements in a container that has a temporary folder of its own.

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
    net: nn.Module,
    images: Tensor,
    reference: nn.Module,
    reference_images: Tensor,
    seconds: float,
    min_pairs: int,
) -> Ratio:
    """Time a net and a reference net in turns: net, reference, net, reference ...

    With one torch thread on a CPU the clock is the thread's CPU time; with more threads or on a
    GPU, where that is not the duration, it is the wall clock, and the ratio is less sure on a busy
    machine.

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
    net_ms, reference_ms = np.sort(np.array(times), axis=0)[:FASTEST].mean(axis=0) / 1e6
    return Ratio(
        float(net_ms / reference_ms), len(times), clock, float(net_ms), float(reference_ms)
    )


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
