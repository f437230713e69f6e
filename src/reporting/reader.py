"""What a report reads besides the runs: predictions, histories, files; each once."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from src.errors import UserError
from src.reporting.collect import Study
from src.tracking import history, read
from src.tracking.store import Store

log = logging.getLogger(__name__)


class Reader:
    """Reads a store for a report.

    Args:
        store: Opened if it is not yet.
        studies: That are reported on.
        refresh: Read histories from the store again.
    """

    def __init__(self, store: Store, studies: Sequence[Study], refresh: bool = False) -> None:
        self.store = store
        self._refresh = refresh
        self._study = {run_id: study for study in studies for run_id in study.trials["run_id"]}
        self._predictions: dict[tuple[str, str], list[pd.DataFrame]] = {}

    def study_of(self, run_id: str) -> Study:
        """The study that a trial belongs to."""
        return self._study[run_id]

    def predictions(self, run_id: str, split: str) -> list[pd.DataFrame]:
        """What a trial's nets predicted on a split, a table a seed; empty where it was not recorded for every seed."""
        key = (run_id, split)
        if key not in self._predictions:
            try:
                self._predictions[key] = [
                    history.predictions(self.store, each, split) for each in self._study[run_id].runs_of(run_id)
                ]
            except UserError:
                self._predictions[key] = []
        return self._predictions[key]

    def history(self, run_ids: Sequence[str], metric: str) -> tuple[pd.DataFrame, dict[str, str]]:
        """A metric at every step of the nets of trials.

        Returns:
            Columns run_id (of the net), step, value; and the trial of each net.
        """
        trial_of = {net: run_id for run_id in run_ids for net in self._nets(run_id)}
        return history.history(self.store, list(trial_of), metric, self._refresh), trial_of

    def _nets(self, run_id: str) -> list[str]:
        study = self._study[run_id]
        below = study.seeds[study.seeds["parent_id"] == run_id] if len(study.seeds) else study.seeds
        return list(below["run_id"]) if len(below) else [run_id]

    def artifacts(self, run_id: str) -> Path | None:
        """The folder of a trained run's artifacts, if it is on this machine and holds a config."""
        if self.store.is_server:
            return None
        try:
            return read.artifact(self.store, self._study[run_id].runs_of(run_id)[0], "config.yaml").parent
        except UserError:
            return None
