"""What a model costs where it was measured: latency with its conditions, memory, exports, benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from src.carding.record import ABSENT, CardPart, Fact, facts, number
from src.carding.recorded import RunRecord
from src.efficiency.profile import PERCENTILES
from src.metrics.formatting import joined
from src.reporting.clinical.page import NOTHING, AuditTable

EXPORT, BENCHMARK = "export/", "benchmark/"
# of a benchmark's figures those that a card shows; src.deployment.benchmark.result says what each
# is
MEASURED = (
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "ratio",
    "jpeg_p50_ms",
    "cold_start_s",
    "peak_memory_mb",
    "size_mb",
    "energy_mj",
)
_SEVERAL = "Of several nets the mean."


def cost(recorded: RunRecord) -> CardPart:
    """Latency, throughput, memory, and what exports and benchmarks recorded."""
    found = facts(
        _beside(recorded),
        (
            "Throughput",
            number(recorded.values("efficiency/throughput"), 0, f"images/s{_of_largest(recorded)}"),
        ),
        ("Peak memory of inference", number(recorded.values("efficiency/peak_memory_mb"), 1, "MB")),
        ("Measured on", _conditions(recorded)),
    )
    made = [
        listed(
            recorded.metrics(EXPORT), "Exports, beside the run's own answers to the same images"
        ),
        _benchmarks(recorded),
    ]
    told = [
        *(
            ()
            if made[0].rows
            else ("No export is recorded: python -m src.export makes one and compares it.",)
        ),
        *(
            ()
            if made[1].rows
            else ("No benchmark is recorded: python -m src.benchmark makes one.",)
        ),
    ]
    return CardPart(
        found, tuple(told), tuple(sheet for sheet in (_latency(recorded), *made) if sheet.rows)
    )


def _latency(recorded: RunRecord) -> AuditTable:
    rows = tuple(
        (
            f"{batch}",
            *(
                number(recorded.values(f"efficiency/latency_ms/b{batch}/p{percentile}"), 2)
                for percentile in PERCENTILES
            ),
        )
        for batch in _batches(recorded)
    )
    head = ("images a call", *("median" if each == 50 else f"{each}%" for each in PERCENTILES))
    return AuditTable(
        "Latency of a call, ms",
        head,
        rows,
        "Lower is better. 90%: nine of ten calls take no longer.",
    )


def _benchmarks(recorded: RunRecord) -> AuditTable:
    sheet = listed(recorded.metrics(BENCHMARK), "Benchmarks", MEASURED)
    lines = [
        name.removesuffix("/reference")
        for name in recorded.tags(BENCHMARK)
        if name.endswith("/reference")
    ]
    return with_references(
        sheet, {line: recorded.tag(f"{BENCHMARK}{line}/reference") for line in lines}
    )


def with_references(sheet: AuditTable, references: Mapping[str, str]) -> AuditTable:
    """Say in the caption whose time is 1 in the column of ratios.

    Args:
        sheet: From `listed`.
        references: Label of the model that was the reference, by line.
    """
    several = len(set(references.values())) > 1
    beside = [
        f"the median of {label}"
        + (f" ({'; '.join(_shown(line) for line in lines)})" if several else "")
        for label, lines in groupby(
            sorted(references, key=references.__getitem__), references.__getitem__
        )
    ]
    if "ratio" not in sheet.head or not beside:
        return sheet
    return replace(
        sheet,
        caption=f"{sheet.caption} Ratio: the median over {joined(beside)}; below 1 is faster.",
    )


def _shown(line: str) -> str:
    """A line's name for people."""
    return line.replace("/", ", ")


def _beside(recorded: RunRecord) -> Fact:
    details = recorded.json("efficiency.json")
    name = (
        f"{details['reference']} of {details['reference_params']:,} parameters"
        if details
        else "the reference net"
    )
    return f"Latency beside {name}, in turn with it", number(
        recorded.values("efficiency/latency_ratio"), 2, "times"
    )


def _batches(recorded: RunRecord) -> list[int]:
    names = recorded.metrics("efficiency/latency_ms/b")
    return sorted({int(name.partition("/")[0]) for name in names})


def _of_largest(recorded: RunRecord) -> str:
    batches = _batches(recorded)
    return f" in batches of {max(batches)}" if batches else ""


def _conditions(recorded: RunRecord) -> str:
    details = recorded.json("efficiency.json")
    if not details:
        return ABSENT
    threads = details.get("threads", ABSENT)
    return (
        f"{details.get('device', ABSENT)}, {threads} thread{'' if threads == 1 else 's'}, torch "
        f"{details.get('torch', ABSENT)}, without decoding a picture; milliseconds move with what else the machine "
        "does, the ratio hardly does"
    )


def listed(
    found: Mapping[str, Sequence[float]], title: str, wanted: Sequence[str] = ()
) -> AuditTable:
    """What is recorded under names such as "onnx/largest_difference": a line an export or benchmark, a column a figure.

    Args:
        found: A figure a net, by the names without their prefix.
        title: Of the table.
        wanted: Figures that are shown; all by default.
    """
    lines = dict.fromkeys(name.rpartition("/")[0] for name in sorted(found))
    names = wanted or list(dict.fromkeys(name.rpartition("/")[2] for name in found))
    columns = [name for name in names if any(f"{line}/{name}" in found for line in lines)]
    rows = tuple(
        (_shown(line), *(_figure(found.get(f"{line}/{name}", ())) for name in columns))
        for line in lines
    )
    return AuditTable(title, ("of", *(name.replace("_", " ") for name in columns)), rows, _SEVERAL)


def _figure(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    mean = f"{sum(values) / len(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ({len(values)} nets)"
