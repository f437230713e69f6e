"""Real processes, each with a tiny model."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_models import CLASSES, describe, write_onnx
from omegaconf import DictConfig, OmegaConf

from src.core.cli import ROOT
from src.core.errors import ConfigError, UserError
from src.deployment import trained
from src.deployment.benchmark.measure import WorkerFailed, WorkerProcess, measure, reference
from src.deployment.benchmark.models import BenchmarkSettings, of_files, of_net, of_runs
from src.deployment.benchmark.result import BenchmarkRow
from src.deployment.benchmark.worker import LIBRARIES, Session, encoded
from src.tracking.store import Store
from src.training.checkpoint import save_weights


def spec(file: Path, **more: Any) -> dict[str, Any]:
    return {"runtime": "onnx", "file": str(file), "threads": 1, "batch": 1} | more


def asked(file: Path | list[Path], **more: Any) -> BenchmarkSettings:
    files = [str(each) for each in (file if isinstance(file, list) else [file])]
    few = {
        "queries": 40,
        "seconds": 0.0,
        "warm_up_s": 0.0,
        "turn_ms": 1.0,
        "cold_starts": 1,
        "jpeg_queries": 4,
    }
    return BenchmarkSettings(file=files, **(few | more))


@pytest.fixture
def collected() -> Iterator[None]:
    """A session switches the garbage collection off: of its own process, else."""
    yield
    gc.enable()


def test_rows_hold_all_that_can_be_measured(onnx_file: Path, tmp_path: Path) -> None:
    twin = write_onnx(tmp_path / "twin.onnx", "4567cdef")
    settings = asked([onnx_file, twin])
    rows, measured_against = measure(of_files(settings), settings, encoded(None)[0])
    assert measured_against == "tiny.onnx in onnx"
    assert [(row.run_id, row.model, row.reason) for row in rows] == [
        ("0123abcd", "tiny", ""),
        ("4567cdef", "tiny", ""),
    ]
    for row in rows:
        figures = row.figures
        assert figures["queries"] >= 40
        assert 0 < figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"]
        assert (
            figures["p50_ms"] < figures["jpeg_p50_ms"]
        )  # decoding 600x450 px takes longer than this model
        assert 0 < figures["load_s"] < figures["cold_start_s"]
        assert 0 < figures["imported_memory_mb"] <= figures["peak_memory_mb"]
        assert (
            figures["model_memory_mb"] == figures["peak_memory_mb"] - figures["imported_memory_mb"]
        )
        assert figures["size_mb"] == pytest.approx(onnx_file.stat().st_size / 1e6)
        assert figures["ratio_low"] <= figures["ratio"] <= figures["ratio_high"]
        assert ("energy_mj" in figures) == (row.energy_absent == "")
    assert rows[0].figures["ratio"] == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
def test_a_model_that_does_not_fit_is_a_row_with_its_reason(onnx_file: Path) -> None:
    settings = asked(onnx_file, memory_mb=30, cores=1)
    [row], measured_against = measure(of_files(settings), settings, b"")
    assert "memory_mb=30" in row.reason
    assert "emulation" in row.reason
    assert row.figures == {}
    assert measured_against == ""


def test_a_model_that_ends_half_way_has_no_figures_and_is_no_reference(onnx_file: Path) -> None:
    settings = asked(onnx_file)
    [row], measured_against = measure(of_files(settings), settings, b"no picture")
    assert "cannot identify image file" in row.reason
    assert row.figures == {}
    assert measured_against == ""


def test_files_of_one_name_are_told_by_their_paths(onnx_file: Path, tmp_path: Path) -> None:
    twins = [write_onnx(tmp_path / name / "model.onnx", "0123abcd") for name in "ab"]
    found = of_files(asked([twins[0], onnx_file, twins[1], twins[0]]))
    assert [each.label for each in found] == [str(twins[0]), onnx_file.name, str(twins[1])]


def test_a_process_that_is_killed_says_so(onnx_file: Path) -> None:
    with WorkerProcess(spec(onnx_file)) as worker:
        worker._process.kill()
        with pytest.raises(WorkerFailed, match="SIGKILL"):
            worker.turn(0, 1)


class Interrupted:
    """Ctrl+C while a process is waited for."""

    def readline(self) -> str:
        raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_an_interrupted_wait_leaves_no_clock_behind(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkerProcess(spec(onnx_file)) as worker:
        monkeypatch.setattr(worker._process, "stdout", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            worker.turn(0, 1)
    assert worker._process.returncode is not None
    for clock in (each for each in threading.enumerate() if isinstance(each, threading.Timer)):
        clock.join(5)
        assert not clock.is_alive()


def test_a_session_answers_and_takes_a_batch(onnx_file: Path, collected: None) -> None:
    session = Session(spec(onnx_file, batch=3), time.perf_counter())
    assert len(session.obey({"do": "turn", "untimed": 2, "timed": 5})["ns"]) == 5
    assert len(session.obey({"do": "warm_up", "seconds": 0.0})["ns"]) == 1
    assert session.hello()["version"]


def test_more_resident_memory_than_the_emulated_device_has_is_refused(
    onnx_file: Path, collected: None
) -> None:
    with pytest.raises(UserError, match="does not fit: .* more than memory_mb=16"):
        Session(
            spec(onnx_file, memory_mb=16), time.perf_counter()
        )  # unlimited itself: this process is larger


def test_memory_is_what_was_resident_at_most_and_none_of_the_parents() -> None:
    program = """
import numpy as np
from src.deployment.benchmark.worker import high_water_mb
before = high_water_mb()
held = np.ones(10_000_000)
del held
print(before, high_water_mb() - before)
"""
    parents = np.ones(20_000_000)  # 160 MB: on Linux ru_maxrss of a child would start with them
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, more = map(float, told.stdout.split())
    assert before < parents.nbytes / 1e6
    assert more == pytest.approx(80, abs=8)


def test_runs_in_torch_are_loaded_without_a_store(
    store: Store, study: dict[str, str], tmp_path: Path, collected: None
) -> None:
    [subject] = of_runs(store, BenchmarkSettings(run=study["member"][:12]), tmp_path / "nets")
    assert subject.label == f"custom {study['member'][:8]}"
    session = Session(subject.spec | {"threads": 1, "batch": 2}, time.perf_counter())
    assert f'"run_id": "{study["member"]}"' in session.hello()["description"]
    assert len(session.obey({"do": "turn", "untimed": 0, "timed": 2})["ns"]) == 2


def test_a_net_in_bfloat16_is_measured_in_bfloat16(
    store: Store, study: dict[str, str], tmp_path: Path, collected: None
) -> None:
    config = OmegaConf.merge(
        trained.find(store, study["member"]).config, {"compression": {"name": "bfloat16"}}
    )
    assert isinstance(config, DictConfig)
    save_weights(trained.build_classifier(config, CLASSES), tmp_path / "half.ckpt")
    description = replace(describe(study["member"]), precision="bfloat16")
    subject = of_net(config, description, tmp_path / "half.ckpt", tmp_path / "net", "eager")
    session = Session(subject.spec | {"threads": 1, "batch": 1}, time.perf_counter())
    weights = list(session._runtime._model.net.parameters())  # type: ignore[attr-defined]  # of torch's runtimes
    assert {each.dtype for each in weights} == {torch.bfloat16}


def test_a_study_is_its_front_and_a_trial_its_first_seed(
    store: Store, study: dict[str, str], tmp_path: Path
) -> None:
    found = of_runs(
        store, BenchmarkSettings(run=["widths"], runtime=["eager", "compile"]), tmp_path
    )
    expected = {
        (study[name], runtime) for name in ("member", "seed0") for runtime in ("eager", "compile")
    }
    assert {(each.run_id, each.runtime) for each in found} == expected


def test_reference_is_found_by_runtime_run_or_both() -> None:
    rows = [
        BenchmarkRow("a", "eager", "aa11"),
        BenchmarkRow("a", "onnx", "aa11"),
        BenchmarkRow("b", "eager", "bb22"),
        BenchmarkRow("b", "onnx", "bb22"),
    ]
    wanted = {None: 0, "onnx": 1, "bb": 2, "bb22:onnx": 3, "b:eager": 2}
    assert {each: reference(rows, each) for each in wanted} == wanted
    with pytest.raises(ConfigError, match=r"litert is none of a:eager, a:onnx, b:eager, b:onnx"):
        reference(rows, "litert")


def test_a_process_that_runs_an_exported_model_does_without_torch() -> None:
    """Or its memory and its start would be torch's."""
    modules = [LIBRARIES[name].ours[0] for name in ("onnx", "litert")]
    program = f"import sys, importlib, src.deployment.benchmark.worker; [importlib.import_module(name) for name in {modules}]"
    asked = (
        f"{program}; print([name for name in ('torch', 'mlflow', 'pandas') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"
