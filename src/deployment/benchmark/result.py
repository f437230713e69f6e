"""The result of a benchmark: JSON and CSV files, and the record names of its figures."""

import csv
import dataclasses
import io
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import pydantic
from annotated_types import Ge

from src.core.environment import available_cores, cpu_name
from src.core.errors import UserError
from src.core.files import escape_formula, slug
from src.deployment.description import STRICT, validated
from src.deployment.runtimes.formats import RuntimeName

KIND: Literal["paretoderm benchmark"] = "paretoderm benchmark"
VERSION: Literal[1] = 1
# Figures of a row: name -> meaning and unit. A figure that could not be measured is absent.
FIGURES: dict[str, str] = json.loads(Path(__file__).with_name("figures.json").read_text())
if TYPE_CHECKING:
    Figure: TypeAlias = str
else:
    Figure = Literal[tuple(FIGURES)]
_BOARD = Path("/proc/device-tree/model")  # single-board computers and phones


@dataclass
class Device:
    """A machine."""

    # a part of metric names; names the emulation, too
    name: Annotated[str, pydantic.StringConstraints(pattern=r"^[\w.-]+$")]
    cpu: str  # model of the processor or board
    cores: int  # that the process may use
    memory_gb: float | None  # 10^9 bytes; None where the system does not say
    system: str  # operating system
    machine: str  # architecture, such as aarch64
    python: str  # version
    emulation: str = ""  # of a smaller device, such as "1 core, 512 MB"; empty: none

    __pydantic_config__ = STRICT


@dataclass
class BenchmarkRow:
    """A model in a runtime."""

    label: str  # shown to people
    runtime: RuntimeName | Literal["web"]  # "web": a browser, see `src.deployment.web`
    run_id: str = ""  # the run that it comes from; empty if it could not be loaded
    model: str = ""  # name of the architecture
    precision: str = ""  # of the weights
    version: str = ""  # of the runtime
    reason: str = ""  # why it was not measured, in one line; empty if it was
    energy_absent: str = ""  # why its energy is unknown; empty if it is known
    figures: dict[Figure, Annotated[float, Ge(0)]] = field(default_factory=dict)

    __pydantic_config__ = STRICT


@dataclass
class BenchmarkResult:
    """One benchmark."""

    device: Device
    written: str  # date and time, ISO 8601, UTC
    threads: int  # of a call
    batch: int  # pictures of a call
    reference: str  # label of the row whose ratio is 1
    conditions: dict[str, str | int | float | None]  # and which photograph was used
    notes: list[str]  # sentences for people
    rows: list[BenchmarkRow]  # in the order of the command line
    kind: Literal["paretoderm benchmark"] = KIND  # marks such a file
    version: Literal[1] = VERSION  # of the file layout

    __pydantic_config__ = STRICT

    @property
    def name(self) -> str:
        """File name without suffix: device, threads, batch and time."""
        time = "".join(letter for letter in self.written[:19] if letter.isdigit() or letter == "T")
        return f"benchmark_{self.device.name}_t{self.threads}_b{self.batch}_{time}"

    def prefix(self, row: BenchmarkRow) -> str:
        """The start of the record names of a row's figures."""
        return f"benchmark/{self.device.name}/{row.runtime}/t{self.threads}/b{self.batch}"

    def to_json(self) -> str:
        """The result as text; unknown figures are absent, never NaN."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """One line per row, one column per figure."""
        common = {name: getattr(self, name) for name in ("threads", "batch", "reference")}
        common = {"device": self.device.name, **common}
        names = [item.name for item in dataclasses.fields(BenchmarkRow) if item.name != "figures"]
        file = io.StringIO()
        writer = csv.DictWriter(file, [*names, *common, *FIGURES], lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            texts = {name: getattr(row, name) for name in names} | common
            safe = {name: escape_formula(value) for name, value in texts.items()}
            writer.writerow(safe | row.figures)
        return file.getvalue()


def finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    """The figures that are neither None nor NaN."""
    return {
        name: float(value)
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    }


def read(path: Path) -> BenchmarkResult:
    """Read a result that this or another machine wrote.

    Raises:
        UserError: The file is absent, damaged, no benchmark result or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"join={path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"join={path}: no result of src.benchmark")
    if content.get("version") != VERSION:
        raise UserError(
            f"join={path}: has version {content.get('version')!r}, and {VERSION} is read; "
            "measure it again"
        )
    try:
        return validated(BenchmarkResult, content)
    except ValueError as error:
        raise UserError(f"join={path}: damaged, {error}") from None


def this_device(name: str | None, emulation: str) -> Device:
    """This machine.

    Args:
        name: Its name in the record; None: the name of the board or processor.
        emulation: Limits of an emulated device, which become a part of the name.
    """
    cpu = cpu_name()
    if _BOARD.exists():
        cpu = _BOARD.read_text(errors="replace").strip("\0 \n") or cpu
    try:
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory_gb = round(pages / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        memory_gb = None
    return Device(
        name=slug(name or cpu) + (f"-emulating-{slug(emulation)}" if emulation else ""),
        cpu=cpu,
        cores=available_cores(),
        memory_gb=memory_gb,
        system=platform.platform(),
        machine=platform.machine(),
        python=platform.python_version(),
        emulation=emulation,
    )
