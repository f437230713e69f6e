import contextlib
import gc
import logging
import multiprocessing
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.efficiency import latency

IMAGES = torch.zeros(1, 3, 128, 128)


class Calls(nn.Module):
    """Does `layers` matrix products per call and logs its name."""

    def __init__(self, name: str = "net", log: list[str] | None = None, layers: int = 1) -> None:
        super().__init__()
        self.name, self.log, self.layers = name, [] if log is None else log, layers

    def forward(self, images: Tensor) -> Tensor:
        self.log.append(self.name)
        square = images[0, 0]
        for _ in range(self.layers):
            square = square @ square
        return square


def ratio(net: nn.Module, reference: nn.Module, seconds: float, pairs: int) -> latency.Ratio:
    return latency.latency_ratio(net, IMAGES, reference, IMAGES, seconds, pairs)


def test_networks_alternate_call_by_call() -> None:
    log: list[str] = []
    with latency.timing_conditions(1):
        result = ratio(Calls("net", log), Calls("ref", log), 0.001, 7)
    assert result.pairs >= 7
    assert log == ["net", "ref"] * result.pairs


def test_ratio_follows_the_amount_of_work() -> None:
    """Twenty times the work; the bounds are wide, because this is not a benchmark."""
    small, large = Calls(layers=2), Calls(layers=40)
    with latency.timing_conditions(1):
        slow, fast = ratio(large, small, 0.05, 20), ratio(small, large, 0.05, 20)
    assert slow.value > 5
    assert fast.value < 0.2
    assert slow.net_ms > slow.reference_ms > 0


@pytest.mark.parametrize(("threads", "clock"), [(1, "thread CPU time"), (2, "wall")])
def test_clock_is_the_threads_own_where_that_is_the_duration(threads: int, clock: str) -> None:
    with latency.timing_conditions(threads):
        assert ratio(Calls(), Calls(), 0.001, 2).clock == clock


def test_ratio_is_that_of_the_undisturbed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up clock: 30 ns against 10 ns, but every third call of either is interrupted."""
    turns = [(30.0 + 900 * (turn % 3 == 0), 10.0 + 5000 * (turn % 3 == 1)) for turn in range(60)]
    steps = [step for turn in turns for duration in turn for step in (7, duration)]
    ticks = iter(np.cumsum(steps).tolist())
    monkeypatch.setattr(latency, "_wall_clock", lambda device: lambda: next(ticks))
    with latency.timing_conditions(2):
        result = ratio(Calls(), Calls(), 1e-12, 60)
    assert (result.pairs, result.clock) == (60, "wall")
    assert (result.value, result.net_ms, result.reference_ms) == pytest.approx((3.0, 30e-6, 10e-6))


def test_repeats_until_both_time_and_number_are_reached() -> None:
    net = Calls()
    assert len(latency.latencies_ms(net, IMAGES, 1e-9, 11)) == 11
    times = latency.latencies_ms(net, IMAGES, 0.01, 1)
    assert times.sum() >= 10
    assert times[:-1].sum() < 10


def test_warm_up_calls_at_least_once() -> None:
    net = Calls()
    latency.warm_up(net, IMAGES, 0.0)
    assert net.log == ["net"]


def test_conditions_hold_within_and_are_restored() -> None:
    before = torch.get_num_threads()
    gc.enable()
    with contextlib.suppress(ZeroDivisionError), latency.timing_conditions(before + 1):
        assert torch.get_num_threads() == before + 1
        assert torch.is_inference_mode_enabled()
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()
    assert gc.isenabled()


def hold(lock: Path, ready: Any, release: Any) -> None:
    with latency.alone(lock):
        ready.set()
        release.wait(600)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """A process that holds the lock: path of the lock, process, event that releases it."""
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "latency.lock", ready, release))
    process.start()
    assert ready.wait(60)
    yield tmp_path / "latency.lock", process, release
    process.kill()
    process.join()


def test_waits_for_another_process_with_a_warning(
    holder: tuple[Path, Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    lock, process, release = holder
    threading.Timer(0.3, release.set).start()
    with caplog.at_level(logging.WARNING), latency.alone(lock):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"another run is measuring latency; waiting for it to release {lock}"
    ]
    process.join()
    assert process.exitcode == 0


def test_lock_of_a_killed_process_is_free(
    holder: tuple[Path, Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    lock, process, _ = holder
    process.kill()
    process.join()
    with latency.alone(lock):
        pass
    assert not caplog.records


def test_two_threads_never_time_at_once(tmp_path: Path) -> None:
    inside, most = 0, 0

    def measure() -> None:
        nonlocal inside, most
        for _ in range(5):
            with latency.alone(tmp_path / "latency.lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_every_user_may_use_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "latency.lock"
    before = os.umask(0o077)
    try:
        with latency.alone(lock):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


def test_lock_does_not_depend_on_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = latency.shared_lock()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert latency.shared_lock() == before
