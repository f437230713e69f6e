"""Benchmark results as files, as terminal output and in the run record."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from src.core.errors import UserError
from src.deployment.benchmark import benchmark
from src.deployment.benchmark.benchmark import publish
from src.deployment.benchmark.result import (
    FIGURES,
    BenchmarkResult,
    BenchmarkRow,
    Device,
    finite,
    read,
)
from src.tracking import read as tracking
from src.tracking.run import Run
from src.tracking.store import Store


def result(**changes: Any) -> BenchmarkResult:
    """A result with a measured row and a failed one."""
    row = BenchmarkRow("tiny.onnx", "onnx", "0123abcd", "tiny", "float32", "1.31.1")
    row.energy_absent = "no RAPL counter on this machine"
    row.figures = {"p50_ms": 0.5, "p90_ms": 0.6, "p99_ms": 2.0, "queries": 1024.0}
    row.figures |= {"seconds": 10.0, "ratio": 1.0}
    values: dict[str, Any] = {
        "device": Device("Pi_4", "Raspberry Pi 4", 4, 4.1, "Linux", "aarch64", "3.11.2"),
        "written": "2026-11-21T12:00:00+00:00",
        "threads": 1,
        "batch": 1,
        "reference": "tiny.onnx in onnx",
        "conditions": {"queries": 1024, "photograph": "drawn", "cores": None},
        "notes": ["a note"],
        "rows": [row, BenchmarkRow("big.pte", "executorch", reason="out of memory")],
    }
    return BenchmarkResult(**(values | changes))


def test_json_is_read_back_and_names_are_unique(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(result().to_json())
    assert read(file) == result()
    assert result().name == "benchmark_Pi_4_t1_b1_20261121T120000"
    other = result(threads=2, batch=4)
    assert other.prefix(other.rows[0]) == "benchmark/Pi_4/onnx/t2/b4"
    assert finite({"a": 1.0, "b": float("nan"), "c": None}) == {"a": 1.0}


def test_csv_and_table_show_each_row_and_run_nothing() -> None:
    shown = result()
    shown.rows[0].label, shown.device.cpu = "=1+[/b].onnx", "[red]Pi"
    rows = list(csv.DictReader(io.StringIO(shown.to_csv())))
    assert [row["label"] for row in rows] == ["'=1+[/b].onnx", "big.pte"]  # no formula
    assert (rows[0]["p99_ms"], rows[0]["device"]) == ("2.0", "Pi_4")
    assert (rows[1]["p99_ms"], rows[1]["reason"]) == ("", "out of memory")
    assert set(FIGURES) <= set(rows[0])
    console = Console(width=100, file=io.StringIO())
    console.print(benchmark.table(shown))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "=1+[/b].onnx" in output  # no markup
    assert "[red]Pi" in output
    text = "\n".join(benchmark.lines(shown))
    assert "big.pte in executorch: not measured: out of memory" in text
    assert "energy: absent, no RAPL counter on this machine" in text
    assert "at least 1,024 calls and 10.0 s" in text
    assert "a note" in text


def damage(key: str, value: Any) -> str:
    """The JSON with another value at a key such as `rows.0.figures.p50_ms`; None deletes it."""
    content = node = json.loads(result().to_json())
    *parents, last = key.split(".")
    for parent in parents:
        node = node[int(parent) if isinstance(node, list) else parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[1]", "no result of src.benchmark"),
        ('{"kind": "coco"}', "no result of src.benchmark"),
        (damage("version", 2), "has version 2"),
        (damage("threads", None), "damaged, threads: field required"),
        (damage("threads", "one"), "damaged, threads"),
        (damage("rows", None), "damaged, rows"),
        (damage("rows.0.runtime", "tensorrt"), "damaged, rows.0.runtime"),
        (damage("rows.0.figures.p50_ms", "quick"), "damaged, rows.0.figures.p50_ms"),
        (damage("rows.0.figures.p50_ms", float("nan")), "damaged, rows.0.figures.p50_ms"),
        (damage("rows.0.figures.p50_ms", -1.0), "damaged, rows.0.figures.p50_ms"),
        (damage("rows.0.figures.speed", 1.0), "damaged, rows.0.figures.speed"),
        (damage("rows.0.owner", "me"), "damaged, rows.0.owner"),
        (damage("device.name", "../../x"), "damaged, device.name"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match="join=") as caught:
        read(file)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_figures_and_file_are_added_to_the_run(store: Store, tmp_path: Path) -> None:
    with Run.start(store, "custom") as run:
        pass
    file = tmp_path / "result.json"

    def published(change: Callable[[BenchmarkResult], object] = lambda added: None) -> list[str]:
        added = result()
        added.rows[0].run_id = run.id
        change(added)
        file.write_text(added.to_json())
        return publish(added, file, store)

    problems: dict[str, Callable[[BenchmarkResult], object]] = {
        "ffff": lambda added: added.rows.append(replace(added.rows[0], run_id="f" * 32)),
        "2 models of run": lambda added: added.rows.append(added.rows[0]),
        "names no run": lambda added: added.rows.pop(0),
    }
    for problem, change in problems.items():
        with pytest.raises(UserError, match=problem):
            published(change)
    assert not [name for name in store.client.get_run(run.id).data.metrics if "bench" in name]
    assert published() == [run.id]
    recorded = store.client.get_run(run.id)
    assert recorded.data.metrics["benchmark/Pi_4/onnx/t1/b1/p50_ms"] == 0.5
    name = "benchmark/Pi_4/onnx/t1/b1/reference"
    assert recorded.data.tags[name] == "tiny.onnx in onnx"
    copy = tracking.artifact(store, run.id, f"benchmark/{file.name}")
    assert copy.read_text() == file.read_text()
    assert recorded.info.status == "FINISHED"
