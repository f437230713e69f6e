"""A result as JSON and back, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from src.core.errors import UserError
from src.deployment.benchmark import benchmark
from src.deployment.benchmark.result import (
    FIGURES,
    BenchmarkResult,
    BenchmarkRow,
    Device,
    known,
    read,
)


def made_up(**changes: Any) -> BenchmarkResult:
    row = BenchmarkRow("tiny.onnx", "onnx", "0123abcd", "tiny", "float32", "1.31.1")
    row.energy_absent = "no RAPL counter on this machine"
    row.figures = {
        "p50_ms": 0.5,
        "p90_ms": 0.6,
        "p99_ms": 2.0,
        "queries": 1024.0,
        "seconds": 10.0,
        "ratio": 1.0,
    }
    lost = BenchmarkRow("big.pte", "executorch", reason="out of memory")
    values: dict[str, Any] = {
        "device": Device("Pi_4", "Raspberry Pi 4", 4, 4.1, "Linux", "aarch64", "3.11.2"),
        "written": "2026-11-21T12:00:00+00:00",
        "threads": 1,
        "batch": 1,
        "reference": "tiny.onnx in onnx",
        "conditions": {"queries": 1024, "photograph": "drawn", "cores": None},
        "notes": ["a note"],
        "rows": [row, lost],
    }
    return BenchmarkResult(**(values | changes))


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(made_up().to_json())
    assert read(file) == made_up()


def test_metrics_name_device_runtime_threads_and_batch() -> None:
    result = made_up(threads=2, batch=4)
    assert result.metrics(result.rows[0])["benchmark/Pi_4/onnx/t2/b4/p50_ms"] == 0.5


def test_name_of_its_files_holds_when() -> None:
    assert made_up().name == "benchmark_Pi_4_t1_b1_20261121T120000"


def test_csv_has_a_line_a_row_and_a_column_a_figure() -> None:
    rows = list(csv.DictReader(io.StringIO(made_up().to_csv())))
    assert [row["label"] for row in rows] == ["tiny.onnx", "big.pte"]
    assert rows[0]["p99_ms"] == "2.0"
    assert rows[0]["device"] == "Pi_4"
    assert rows[1]["p99_ms"] == ""
    assert rows[1]["reason"] == "out of memory"
    assert set(FIGURES) <= set(rows[0])


def test_names_are_no_formulas_of_a_spreadsheet_and_no_markup_of_the_terminal() -> None:
    result = made_up()
    result.rows[0].label, result.device.cpu = "=1+[/b].onnx", "[red]Pi"
    [row, _] = csv.DictReader(io.StringIO(result.to_csv()))
    assert row["label"] == "'=1+[/b].onnx"
    console = Console(width=100, file=io.StringIO())
    console.print(benchmark.table(result))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "=1+[/b].onnx" in said
    assert "[red]Pi" in said


def test_what_is_not_known_is_absent() -> None:
    assert known({"p50_ms": 1.0, "ratio_low": float("nan"), "energy_mj": None}) == {"p50_ms": 1.0}


def damage(path: str, value: Any) -> str:
    """The JSON with another value at a path such as `rows.0.figures.p50_ms`; None takes it away."""
    whole = json.loads(made_up().to_json())
    *above, last = path.split(".")
    place = whole
    for key in above:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [
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
        (damage("rows.0.figures.p50_ms", -1.0), "p50_ms = -1 cannot be"),
        (damage("rows.0.figures.speed", 1.0), "speed = 1 cannot be"),
        (damage("rows.0.owner", "me"), "damaged, rows.0.owner"),
        (damage("device.name", "../../x"), "cannot be a part of a metric's name"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(content)
    with pytest.raises(UserError, match="join=") as refused:
        read(file)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.json")


def test_lines_tell_why_a_row_is_empty_and_why_energy_is_absent() -> None:
    said = "\n".join(benchmark.lines(made_up()))
    assert "big.pte in executorch: not measured: out of memory" in said
    assert "energy: absent, no RAPL counter on this machine" in said
    assert "at least 1,024 calls and 10.0 s" in said
    assert "a note" in said
