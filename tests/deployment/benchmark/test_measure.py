"""Turns on an artificial clock, percentiles and ratios by arithmetic, energy, real processes."""

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tqdm import tqdm

from src.core.errors import ConfigError
from src.deployment.benchmark import measure as measurement
from src.deployment.benchmark.measure import (
    Stream,
    Times,
    WorkerFailed,
    WorkerProcess,
    latencies,
    measure,
    ratio,
    reference,
    single_stream,
)
from src.deployment.benchmark.models import BenchmarkSettings, of_files
from src.deployment.benchmark.result import BenchmarkRow
from src.deployment.benchmark.worker import encoded

Log = list[tuple[str, int, int]]


class FakeModel(WorkerProcess):
    """Answers each query in `ms`, and logs the calls."""

    def __init__(self, name: str, ms: float, log: Log, fails_at: int = 10**9) -> None:
        self.name, self.ms, self.log, self.turns_left = name, ms, log, fails_at

    def warm_up(self, seconds: float) -> Times:
        self.log.append((f"{self.name} warms up", 0, 0))
        return np.array([50 * self.ms, self.ms, self.ms, self.ms])  # the first one loads

    def turn(self, untimed: int, timed: int) -> tuple[Times, float]:
        if self.turns_left == 0:
            raise WorkerFailed("its process died")
        self.turns_left -= 1
        self.log.append((self.name, untimed, timed))
        return np.full(timed, self.ms), 0.5 * timed * self.ms


def streams_of(models: dict[int, FakeModel], *arguments: Any) -> list[Stream]:
    """The streams of models of which none fails."""
    streams, failures = single_stream(models, "test", *arguments)
    assert failures == {}
    return list(streams.values())


def test_models_take_turns_of_equal_time_after_all_are_warm() -> None:
    log: Log = []
    models = {0: FakeModel("fast", 1.0, log), 1: FakeModel("slow", 10.0, log)}
    streams = streams_of(models, 4, 0.0, 1.0, 20.0)
    one_round = [("fast", 1 + 20 // 8, 20), ("slow", 1, 2)]
    assert log == [("fast warms up", 0, 0), ("slow warms up", 0, 0), *one_round, *one_round]
    assert [stream.queries for stream in streams] == [40, 4]
    assert [stream.seconds for stream in streams] == pytest.approx([0.04, 0.04])
    assert [stream.cpu_ms for stream in streams] == pytest.approx([20.0, 20.0])


@pytest.mark.parametrize(
    ("ms", "queries", "seconds", "turn_ms", "expected"),
    [
        (1.0, 100, 0.0, 10.0, 100),  # queries decide
        (1.0, 1, 0.5, 10.0, 500),  # seconds decide
        (1.0, 1024, 0.5, 10.0, 1030),  # in complete turns of 10
        (1.0, 1, 0.0, 10.0, 10),
        (500.0, 3, 0.0, 20.0, 3),  # a turn has at least one query
    ],
)
def test_both_minima_are_reached(
    ms: float,
    queries: int,
    seconds: float,
    turn_ms: float,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[int] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            shares.append(int(self.n))
            return None

    monkeypatch.setattr(measurement, "tqdm", Bar)
    [stream] = streams_of({0: FakeModel("one", ms, [])}, queries, seconds, 0.0, turn_ms)
    assert stream.queries == expected >= queries
    assert stream.seconds >= seconds - 1e-9
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 100)  # per cent


def test_a_model_that_dies_leaves_and_the_others_continue() -> None:
    models = {3: FakeModel("dead", 1.0, [], fails_at=2), 5: FakeModel("alive", 1.0, [])}
    streams, failures = single_stream(models, "test", 100, 0.0, 0.0, 10.0)
    assert failures == {3: "its process died"}
    assert [*streams] == [5]
    assert streams[5].queries == 100
    models = {0: FakeModel("dead", 1.0, [], fails_at=0)}
    assert single_stream(models, "test", 100, 0.0, 0.0, 10.0)[0] == {}


def test_energy_is_counted_only_during_the_turns_of_a_model() -> None:
    counter: Iterator[float] = iter(range(1000))  # one joule between two readings
    models = {0: FakeModel("a", 1.0, []), 1: FakeModel("b", 1.0, [])}
    first, second = streams_of(models, 30, 0.0, 0.0, 10.0, lambda: float(next(counter)))
    assert first.joules == second.joules == 3.0  # three turns
    assert first.calls == 3 * (1 + 10 // 8 + 10)  # untimed queries use energy too


def test_percentiles_and_mean_are_over_all_queries() -> None:
    times = np.arange(1.0, 102.0)  # 1 ... 101: percentile p is 1 + p
    turns = np.split(np.random.default_rng(0).permutation(times), [10, 40])
    expected = {"p50_ms": 51.0, "p90_ms": 91.0, "p99_ms": 100.0, "mean_ms": 51.0}
    assert latencies(turns) == pytest.approx(expected)


def test_disturbances_of_both_models_leave_the_ratio_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    slow = [rng.lognormal(size=8) for _ in range(60)]
    assert ratio([turn * 3 for turn in slow], slow, 200, 0.95, 0) == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_contains_the_true_ratio_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(40):
        turns, other = (
            [scale * rng.lognormal(sigma=0.3, size=4) for _ in range(50)] for scale in (2.0, 1.0)
        )
        _, low, high = ratio(turns, other, 100, 0.9, seed)
        hits += low <= 2.0 <= high
    assert 30 <= hits <= 40  # 36 expected, with a standard deviation of 1.9


def test_blocks_keep_bursts_together() -> None:
    """Bursts over many turns make a wider interval than the same turns in random order."""
    rng = np.random.default_rng(2)
    burst = [
        np.full(4, 1.0 + (turn // 50 % 2)) * rng.lognormal(sigma=0.05, size=4)
        for turn in range(500)
    ]
    steady = [np.ones(4) for _ in range(500)]
    widths = []
    for turns in (burst, [burst[turn] for turn in rng.permutation(500)]):
        _, low, high = ratio(turns, steady, 300, 0.95, 0)
        widths.append(high - low)
    assert widths[0] >= widths[1]


def test_too_few_turns_give_a_ratio_without_an_interval() -> None:
    value, low, high = ratio([np.full(3, 2.0)] * 4, [np.full(3, 1.0)] * 4, 100, 0.95, 0)
    assert value == 2.0
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_reference_is_found_by_runtime_run_or_both() -> None:
    rows = [
        BenchmarkRow(label, runtime, run_id)
        for label, run_id in (("a", "aa11"), ("b", "bb22"))
        for runtime in ("eager", "onnx")
    ]
    expected = {None: 0, "onnx": 1, "bb": 2, "bb22:onnx": 3, "b:eager": 2}
    assert {name: reference(rows, name) for name in expected} == expected
    with pytest.raises(ConfigError, match=r"litert is none of a:eager, a:onnx, b:eager, b:onnx"):
        reference(rows, "litert")


def quick(*files: Path, **more: Any) -> BenchmarkSettings:
    """Settings of a short measurement."""
    short = {"queries": 40, "seconds": 0.0, "warm_up_s": 0.0, "turn_ms": 1.0, "cold_starts": 1}
    return BenchmarkSettings(
        file=[str(file) for file in files], **(short | {"jpeg_queries": 4} | more)
    )


def test_rows_have_all_figures(
    onnx_file: Path, tmp_path: Path, write_onnx: Callable[[Path, str], Path]
) -> None:
    settings = quick(onnx_file, write_onnx(tmp_path / "twin.onnx", "4567cdef"))
    rows, base = measure(of_files(settings), settings, encoded(None)[0])
    assert base == "tiny.onnx in onnx"
    expected = [("0123abcd", "tiny", ""), ("4567cdef", "tiny", "")]
    assert [(row.run_id, row.model, row.reason) for row in rows] == expected
    for row in rows:
        figures = row.figures
        assert figures["queries"] >= 40
        assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
        # decoding 600x450 px takes longer than this model
        assert figures["p50_ms"] < figures["jpeg_p50_ms"]
        assert 0 < figures["load_s"] < figures["cold_start_s"]
        assert 0 < figures["imported_memory_mb"] <= figures["peak_memory_mb"]
        difference = figures["peak_memory_mb"] - figures["imported_memory_mb"]
        assert figures["model_memory_mb"] == difference
        assert figures["size_mb"] == pytest.approx(onnx_file.stat().st_size / 1e6)
        assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"]
        assert ("energy_mj" in figures) == (row.energy_absent == "")
    assert rows[0].figures["ratio"] == 1.0


@pytest.mark.parametrize(
    ("limits", "jpeg", "reason"),
    [
        pytest.param(
            {"memory_mb": 30, "cores": 1},
            b"",
            r"memory_mb=30.*emulation|emulation.*memory_mb=30",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's"),
        ),
        ({}, b"no picture", "cannot identify image file"),  # it fails after the first figures
    ],
)
def test_a_model_that_fails_is_a_row_with_its_reason(
    onnx_file: Path, limits: dict[str, int], jpeg: bytes, reason: str
) -> None:
    settings = quick(onnx_file, **limits)
    [row], base = measure(of_files(settings), settings, jpeg)
    assert re.search(reason, row.reason)
    assert row.figures == {}
    assert base == ""


def test_a_process_that_is_killed_or_waited_for_in_vain(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"runtime": "onnx", "file": str(onnx_file), "threads": 1, "batch": 1}
    with closing(WorkerProcess(spec)) as worker:
        monkeypatch.setattr(measurement, "TIMEOUT_S", 0.0)
        with pytest.raises(WorkerFailed, match="gave no answer within 0 s"):
            worker.warm_up(0.1)
        monkeypatch.undo()
        worker._pipe.recv()
        worker._process.kill()
        with pytest.raises(WorkerFailed, match="ended by SIGKILL"):
            worker.turn(0, 1)
