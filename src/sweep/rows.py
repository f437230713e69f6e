"""A study's rows in MLflow: one parent, and for every trial a run that agrees with what Optuna says of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.sweep.task import Outcome
from src.tracking import orphans
from src.tracking.run import Run
from src.tracking.store import Store

TAIL_LINES = 8


class Rows:
    """Where the owner of a study records in MLflow.

    The trials' processes write their own runs; the owner closes what they could not.

    Args:
        store: Opened if it is not yet.
        study: The study's name, the tag `study` of all its runs.
        known: The parent's run id from an earlier sitting, if there was one.
        tags: More tags of the parent.
    """

    def __init__(
        self, store: Store, study: str, known: str | None = None, tags: Mapping[str, Any] | None = None
    ) -> None:
        self.store = store
        self.study = study
        every = {"study": study, "kind": "study", **(tags or {})}
        self.parent = Run.reopen(store, known) if known else Run.start(store, study, every)
        if known and tags:
            self.parent.tag(**tags)

    def settle(self, number: int, cell: list[str], run_id: str | None, outcome: Outcome, tail: str) -> str:
        """Make a trial's run agree with its outcome; it is made if the trial never got as far as having one.

        Args:
            number: The trial's.
            cell: Its overrides.
            run_id: As the trial noted it; None if it did not.
            outcome: What the study is told.
            tail: Last lines of the trial's log; of failures they are kept.

        Returns:
            The run's id.
        """
        run_id = run_id or self._find(number)
        if run_id is None:
            tags = {"study": self.study, "kind": "run", "trial": number, "repeat": 0, "overrides": " ".join(cell)}
            run_id = Run.start(self.store, f"trial {number}", tags, parent_id=self.parent.id).id
        for child in self.store.search(f"tags.`mlflow.parentRunId` = '{run_id}'"):
            if child.info.status == "RUNNING":
                orphans.close(self.store, child.info.run_id, "fail", outcome.reason or "its trial ended")
        orphans.close(self.store, run_id, outcome.state, outcome.reason)
        if outcome.state == "fail":
            Run.attach(self.store, run_id).tag(failure_kind=outcome.kind, log_tail=tail)
        return run_id

    def _find(self, number: int) -> str | None:
        query = f"tags.`mlflow.parentRunId` = '{self.parent.id}' and tags.trial = '{number}'"
        return next((run.info.run_id for run in self.store.search(query)), None)


def log_tail(folder: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a trial's log that say anything; empty if it never wrote one."""
    path = folder / "trial.log"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-lines:])
