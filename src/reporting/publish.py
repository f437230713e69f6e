"""A report into MLflow: on the study's own run and on the runs that it speaks of."""

from pathlib import Path

import pandas as pd

from src.analysis.comparison import recorded_name
from src.reporting.collect import Study
from src.reporting.record import Report
from src.reporting.tables import markdown
from src.tracking.limits import recordable
from src.tracking.run import Run
from src.tracking.store import Store

FOLDER = "report"  # within the artifacts of the study's run
DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's UI shows as a run's description


def publish(report: Report, study: Study, folder: Path, store: Store, beside: str | None = None) -> None:
    """Write a study's report to its run: files, headline figures and description; tag the members of its front.

    Args:
        report: Of that study.
        study: Must have a run of its own.
        folder: That holds the report's files.
        store: Opened if it is not yet.
        beside: Of a report on another question than the study's own, or on several studies: where its files go below
            `report/`. Its figures and its front are not the study's: nothing else is written.
    """
    run = Run.attach(store, study.run_id)
    if beside is not None:
        run.artifact(folder, f"{FOLDER}/{beside}")
        return
    own = report.table[report.table["study"] == study.name]
    run.artifact(folder, FOLDER)
    run.log(headline(report, own))
    run.flush()
    run.tag(**{DESCRIPTION: markdown(report), "report": report.written})
    tag_front(own, study.trials, store)


def headline(report: Report, own: pd.DataFrame) -> dict[str, float]:
    """Metrics of the study's run: size and hypervolume of its front, the knee, and what each answer chose.

    Args:
        report: Of the study.
        own: Its rows of the table.
    """
    named = [recorded_name(objective.metric) for objective in report.objectives]
    name = str(own["study"].iloc[0])
    found = {"report/front": float(own["front"].sum()), "report/hypervolume": report.hypervolume.get(name, 0.0)}
    chosen = {"knee": own[own["knee"]]}
    chosen |= {answer.name: own[own["run_id"] == answer.run_id] for answer in report.answers if answer.run_id}
    for what, rows in chosen.items():
        for metric in named:
            if len(rows) and metric in rows and pd.notna(rows[metric].iloc[0]):
                called = recordable(f"report/{_short(what)}/{metric.removeprefix('best/')}")
                found[called] = float(rows[metric].iloc[0])
    return found


def tag_front(own: pd.DataFrame, trials: pd.DataFrame, store: Store) -> None:
    """Set the tags `front` and `knee` where they are not yet what they should be.

    Args:
        own: The study's rows of the report's table.
        trials: The same runs as the store gave them.
        store: Opened if it is not yet.
    """
    before = trials.set_index("run_id")
    for tag in ("front", "knee"):
        now = pd.Series(own[tag].to_numpy(dtype=bool), index=own["run_id"])
        was = before[f"tags.{tag}"] == "true" if f"tags.{tag}" in before else pd.Series(False, index=before.index)
        changed = now[now != was.reindex(now.index).fillna(False).astype(bool)]
        for run_id, value in changed.items():
            Run.attach(store, str(run_id)).tag(**{tag: str(bool(value)).lower()})


def _short(name: str) -> str:
    """An answer's name as a part of a metric's name: no spaces, no signs that MLflow refuses."""
    words = name.replace("<=", "at most").replace(">=", "at least").replace("/", "_").split()
    return "_".join("".join(sign for sign in word if sign.isalnum() or sign in "._-") for word in words)
