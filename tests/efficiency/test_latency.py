import contextlib
import gc
import logging
import multiprocessing
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from src.efficiency import latency


class Calls(nn.Module):
    """Does `layers` matrix products a call and writes its name down."""

    def __init__(self, name: str, log: list[str], layers: int = 1) -> None:
        super().__init__()
        self.name, self.log, self.layers = name, log, layers

    def forward(self, images: Tensor) -> Tensor:
        self.log.append(self.name)
        square = images[0, 0]
        for _ in range(self.layers):
            square = square @ square
        return square


IMAGES = torch.zeros(1, 3, 128, 128)


def hold(lock: Path, ready: "multiprocessing.synchronize.Event", seconds: float) -> None:
    with latency.alone(lock):
        ready.set()
        time.sleep(seconds)


def test_nets_alternate_call_by_call() -> None:
    log: list[str] = []
    with latency.timing_conditions(1):
        ratio = latency.latency_ratio(
            Calls("net", log), IMAGES, Calls("ref", log), IMAGES, 0.001, 7
        )
    assert ratio.pairs >= 7
    assert log == ["net", "ref"] * ratio.pairs


def test_ratio_tells_how_much_more_work_a_net_does() -> None:
    """Twenty times the work; the bounds are wide, for this is no benchmark."""
    log: list[str] = []
    with latency.timing_conditions(1):
        slow = latency.latency_ratio(
            Calls("net", log, 40), IMAGES, Calls("ref", log, 2), IMAGES, 0.05, 20
        )
        fast = latency.latency_ratio(
            Calls("net", log, 2), IMAGES, Calls("ref", log, 40), IMAGES, 0.05, 20
        )
    assert slow.value > 5
    assert fast.value < 0.2
    assert slow.net_ms > slow.reference_ms > 0


def test_ratio_is_on_the_threads_own_clock_only_where_that_is_the_duration() -> None:
    log: list[str] = []
    for threads, clock in ((1, "thread CPU time"), (2, "wall")):
        with latency.timing_conditions(threads):
            assert (
                latency.latency_ratio(
                    Calls("net", log), IMAGES, Calls("ref", log), IMAGES, 0.001, 2
                ).clock
                == clock
            )


def test_ratio_is_that_of_the_undisturbed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says: 30 ns against 10 ns, but every third call of either is interrupted for a long time."""
    log: list[str] = []
    turns = [(30.0 + 900 * (turn % 3 == 0), 10.0 + 5000 * (turn % 3 == 1)) for turn in range(60)]
    ticks = iter(
        np.cumsum([step for turn in turns for duration in turn for step in (7, duration)]).tolist()
    )
    monkeypatch.setattr(latency, "_fairest_clock", lambda device: (lambda: next(ticks), "counted"))
    ratio = latency.latency_ratio(Calls("net", log), IMAGES, Calls("ref", log), IMAGES, 1e-12, 60)
    assert (ratio.pairs, ratio.clock) == (60, "counted")
    assert (ratio.value, ratio.net_ms, ratio.reference_ms) == pytest.approx((3.0, 30e-6, 10e-6))


def test_repeats_until_both_time_and_number_are_reached() -> None:
    log: list[str] = []
    net = Calls("net", log)
    assert len(latency.latencies_ms(net, IMAGES, 1e-9, 11)) == 11
    times = latency.latencies_ms(net, IMAGES, 0.01, 1)
    assert times.sum() >= 10
    assert times[:-1].sum() < 10


def test_warm_up_calls_at_least_once() -> None:
    log: list[str] = []
    latency.warm_up(Calls("net", log), IMAGES, 0.0)
    assert log == ["net"]


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


def test_waits_for_another_process_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "latency.lock"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(lock, ready, 0.5))
    other.start()
    assert ready.wait(60)
    with caplog.at_level(logging.WARNING), latency.alone(lock):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"another run is measuring latency; waiting for it to release {lock}"
    ]
    other.join()
    assert other.exitcode == 0


def test_lock_of_a_killed_process_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = tmp_path / "latency.lock"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(lock, ready, 600.0))
    other.start()
    assert ready.wait(60)
    other.kill()
    other.join()
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
def test_every_user_may_take_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "latency.lock"
    before = os.umask(0o077)
    try:
        with latency.alone(lock):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


def test_lock_is_the_same_for_users_with_other_temporary_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = latency.shared_lock()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert latency.shared_lock() == before
