"""The result as JSON and CSV."""

import csv
import dataclasses
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from src.core.errors import UserError
from src.core.files import escape_formula
from src.deployment.runtimes.files import RuntimeName

_CLOSED = {
    "extra": "forbid",
    "allow_inf_nan": False,
}  # how pydantic reads these classes from a file
KIND: Literal["paretoderm benchmark"] = "paretoderm benchmark"
VERSION: Literal[1] = 1
# The figures of a row, by name: what each is, and its unit. Those that could not be measured are
# absent.
FIGURES = {
    "p50_ms": "latency of a call, percentile 50, ms",
    "p90_ms": "percentile 90, ms",
    "p99_ms": "percentile 99, ms",
    "mean_ms": "mean, ms",
    "ratio": "p50 over the reference's: 2 is twice as slow",
    "ratio_low": "lower end of its interval",
    "ratio_high": "upper end of its interval",
    "jpeg_p50_ms": "from a JPEG in memory to the answer, percentile 50, ms",
    "jpeg_p90_ms": "percentile 90, ms",
    "jpeg_p99_ms": "percentile 99, ms",
    "cold_start_s": "from starting an interpreter to the first answer, s (median)",
    "load_s": "of that, loading the model after the imports, s (median)",
    "peak_memory_mb": "most resident memory of a fresh process up to its first answer, MB (median)",
    "imported_memory_mb": "of that, what the imports of the runtime alone take, MB (median)",
    "model_memory_mb": "the difference of the two, MB",
    "size_mb": "size of the model's file, MB",
    "energy_mj": "energy of a call by the processor's counter, everything else on it included, mJ",
    "queries": "timed calls",
    "seconds": "their time together, s",
    "cpu_ms": "CPU time of a call, of all its threads, mean, ms",
}


@dataclass
class Device:
    """A machine.

    Attributes:
        name: For metrics' names; an emulation is a part of it.
        cpu: Model of the processor or board.
        cores: That the process may use.
        memory_gb: 10^9 bytes.
        system: Operating system.
        machine: Architecture, such as aarch64.
        python: Version.
        emulation: What of a smaller device was put on; empty: nothing.
    """

    name: str
    cpu: str
    cores: int
    memory_gb: float | None
    system: str
    machine: str
    python: str
    emulation: str = ""

    __pydantic_config__ = _CLOSED


@dataclass
class BenchmarkRow:
    """A model in a runtime.

    Attributes:
        label: For people.
        runtime: Of the model.
        run_id: Of the run that it comes from; empty where it could not even be loaded.
        model: Name of the architecture.
        precision: Of its weights.
        version: Of the runtime.
        reason: Why it was not measured, in one line; empty: it was.
        energy_absent: Why its energy is not known; empty: it is.
        figures: By the names of `FIGURES`.
    """

    label: str
    runtime: RuntimeName
    run_id: str = ""
    model: str = ""
    precision: str = ""
    version: str = ""
    reason: str = ""
    energy_absent: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    __pydantic_config__ = _CLOSED


@dataclass
class BenchmarkResult:
    """One benchmark.

    Attributes:
        device: On which.
        written: When, ISO 8601, UTC.
        threads: Of a call.
        batch: Pictures a call.
        reference: Label of the row whose time is 1.
        conditions: Whatever else there is to know: what was asked for, on which photograph.
        notes: For people, a line each.
        rows: In the order in which they were asked for.
        kind: That it is such a file.
        version: Of its layout.
    """

    device: Device
    written: str
    threads: int
    batch: int
    reference: str
    conditions: dict[str, str | int | float | None]
    notes: list[str]
    rows: list[BenchmarkRow]
    kind: Literal["paretoderm benchmark"] = KIND
    version: Literal[1] = VERSION

    __pydantic_config__ = _CLOSED

    @property
    def name(self) -> str:
        """Of its files: device, threads, batch and when."""
        when = "".join(sign for sign in self.written[:19] if sign.isdigit() or sign == "T")
        return f"benchmark_{self.device.name}_t{self.threads}_b{self.batch}_{when}"

    def metrics(self, row: BenchmarkRow) -> dict[str, float]:
        """A row's figures under their names in the run record."""
        return {f"{self.place(row)}/{name}": value for name, value in row.figures.items()}

    def place(self, row: BenchmarkRow) -> str:
        """What the names of a row's figures begin with in the run record."""
        return f"benchmark/{self.device.name}/{row.runtime}/t{self.threads}/b{self.batch}"

    def to_json(self) -> str:
        """As text; what is not known is absent, never NaN."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A line a row, a column a figure."""
        names = [
            "label",
            "runtime",
            "run_id",
            "model",
            "precision",
            "version",
            "reason",
            "energy_absent",
        ]
        told = {
            "device": self.device.name,
            "threads": self.threads,
            "batch": self.batch,
            "reference": self.reference,
        }
        file = io.StringIO()
        table = csv.DictWriter(file, [*names, *told, *FIGURES], lineterminator="\n")
        table.writeheader()
        for row in self.rows:
            texts = {name: getattr(row, name) for name in names} | told
            table.writerow(
                {name: escape_formula(value) for name, value in texts.items()} | row.figures
            )
        return file.getvalue()


def known(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Those that were measured."""
    return {
        name: float(value)
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    }


def read(path: Path) -> BenchmarkResult:
    """A result that another machine, or this one, has written.

    Raises:
        UserError: No such file, none of ours, of another version, or damaged; the message says what
            is wrong with it.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"join={path}: cannot be read as JSON ({error})") from error
    if not isinstance(given, dict) or given.get("kind") != KIND:
        raise UserError(f"join={path}: no result of src.benchmark")
    if given.get("version") != VERSION:
        raise UserError(
            f"join={path}: has version {given.get('version')!r}, and {VERSION} is read; measure it again"
        )
    return _checked(given, path)


def _checked(given: dict[str, Any], path: Path) -> BenchmarkResult:
    import pydantic

    try:
        found = pydantic.TypeAdapter(BenchmarkResult).validate_json(json.dumps(given), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"join={path}: damaged, {where}: {first['msg'].lower()}, but got {first['input']!r}"
        ) from None
    if not re.fullmatch(r"[\w.-]+", found.device.name):
        raise UserError(
            f"join={path}: damaged, device.name: {found.device.name!r} cannot be a part of a metric's name"
        )
    for row in found.rows:
        wrong = [name for name, value in row.figures.items() if name not in FIGURES or value < 0]
        if wrong:
            raise UserError(
                f"join={path}: damaged, {row.label}: {wrong[0]} = {row.figures[wrong[0]]:g} cannot be"
            )
    return found


BOARD = Path(
    "/proc/device-tree/model"
)  # of single-board computers and phones, such as "Raspberry Pi 4 Model B"


def this_device(name: str | None, emulation: str) -> Device:
    """This machine.

    Args:
        name: What to call it; None: by its board or processor.
        emulation: What of a smaller device is put on, which becomes a part of the name.
    """
    cpu = _board() or _processor()
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
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
        from src.core.environment import cpu_name
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
