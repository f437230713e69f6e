"""What is recorded of a model on data that it was not trained on."""

from typing import Any

import pandas as pd

from src.carding.record import ABSENT, CardPart
from src.carding.recorded import RunRecord
from src.deployment.trained import EVALUATION
from src.metrics.registry import MELANOMA
from src.reporting.clinical.page import CLINICAL, NOTHING, AuditTable, estimate_text
from src.tracking import read
from src.tracking.store import TrackingError

NONE = (
    "No evaluation on other data is recorded: how it does on pictures from elsewhere is not known."
)
_HEAD = (
    "data",
    "nets",
    "images",
    "left out",
    "balanced accuracy",
    "recall",
    "at the threshold",
    "run",
)


def external(recorded: RunRecord) -> CardPart:
    """The evaluations that name this run, or one of its nets: `python -m src.evaluate` records them."""
    runs = evaluations(recorded)
    if runs.empty:
        return CardPart(told=(NONE,))
    rows = tuple(_row(recorded, row.dropna().to_dict()) for _, row in runs.iterrows())
    table = AuditTable(
        "On other data",
        _HEAD,
        rows,
        "In [0, 1], higher is better, with intervals by lesion or patient. Recall: of the class that is looked for, by "
        "the most probable class, and at the threshold that own val chose. Left out: images that the run has had.",
    )
    return CardPart(sheets=(table,))


def evaluations(recorded: RunRecord) -> pd.DataFrame:
    """Rows of the runs that evaluated this one or its nets, the newest first."""
    runs, evaluated = recorded.all, recorded.subject.evaluated
    if "tags.evaluated_run" not in runs:
        return runs.iloc[:0]
    wanted = {evaluated.run_id, *(net.run_id for net in evaluated.nets)}
    kind = (runs["tags.kind"] == EVALUATION) & (runs["status"] == "FINISHED")
    return runs[kind & runs["tags.evaluated_run"].isin(wanted)]


def nets_of(recorded: RunRecord, evaluated_run: str) -> str:
    """Which nets of the card's an evaluation was of."""
    seeds = [net.seed for net in recorded.subject.evaluated.nets if net.run_id == evaluated_run]
    return f"seed {seeds[0]}" if seeds else "all"


def _row(recorded: RunRecord, run: dict[Any, Any]) -> tuple[str, ...]:
    name, run_id = str(run["tags.data"]), str(run["run_id"])
    overall = _table(recorded, run_id, f"{CLINICAL}/{name}/overall.csv")
    per_class = _table(recorded, run_id, f"{CLINICAL}/{name}/per_class.csv")
    points = _table(recorded, run_id, f"{CLINICAL}/{name}/operating.csv")
    part = "" if run.get("tags.part", "all") == "all" else f" ({run['tags.part']})"
    kept = " (KEPT)" if run.get("tags.overlap") == "keep" else ""
    recall = [
        row
        for row in per_class
        if row["measure"] == "recall" and str(row["class"]).lower() in MELANOMA
    ]
    chosen = [
        row
        for row in points
        if str(row["rule"]).startswith("sensitivity") and row["measure"] == "sensitivity"
    ]
    return (
        name + part,
        nets_of(recorded, str(run["tags.evaluated_run"])),
        _count(run.get(f"metrics.{name}/images")),
        _count(run.get(f"metrics.{name}/overlap")) + kept,
        *(
            _span([row for row in overall if row["metric"] == "balanced_accuracy"]),
            _span(recall),
            _span(chosen),
        ),
        run_id[:8],
    )


def _table(recorded: RunRecord, run_id: str, name: str) -> list[dict[Any, Any]]:
    try:
        return pd.read_csv(
            read.artifact(recorded.store, run_id, name), keep_default_na=True
        ).to_dict("records")
    except TrackingError:
        return []  # an evaluation that was recorded without its files


def _span(rows: list[dict[Any, Any]]) -> str:
    return estimate_text(rows[0]) if rows else NOTHING


def _count(value: Any) -> str:
    return ABSENT if value is None else f"{value:,.0f}"
