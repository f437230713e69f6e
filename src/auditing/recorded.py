"""What recorded runs say of a paper's systems: metrics over seeds, with intervals, from their predictions."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from src.analysis.bootstrap import DifferentImages, intervals
from src.auditing.claims import Measured, Paper, Requirement, System
from src.auditing.figures import Found
from src.errors import UserError
from src.tracking import history
from src.tracking.store import Store

# parameters of a run that two seeds of one system may differ in; by the start of their names
_FREE: tuple[str, ...] = (
    "params.seed",
    "params.tracking.",
    "params.study",
    "params.repeats",
    "params.threads",
    "params.objective.",
)
_FREE += ("params.test", "params.dry_run", "params.data.root", "params.data.cache_dir", "params.data.source.root")
_MEASURED = frozenset({"measured"})
SPLIT = "test"


class Runs:
    """Recorded runs as the figures of an audit.

    Args:
        runs: All of the store's experiment, as `src.tracking.read.runs` gives them; empty where there is no store.
        store: For their predictions; None where there is no store.
        paper: Its systems.
        studies: Look at runs of these only; empty: at all.
        samples, seed, level: Of the bootstrap.
    """

    def __init__(
        self,
        runs: pd.DataFrame,
        store: Store | None,
        paper: Paper,
        studies: Sequence[str] = (),
        samples: int = 2000,
        seed: int = 0,
        level: float = 0.95,
    ) -> None:
        self._runs = runs
        self._store = store
        self._systems = paper.systems
        self._studies = studies
        self._samples, self._seed, self._level = samples, seed, level
        self._done: dict[Measured, Found] = {}
        self._frames: dict[str, list[pd.DataFrame]] = {}

    def measure(self, wanted: Measured) -> Found:
        """A metric of a system: mean over its seeds and interval, or why there is none.

        Of predictions the interval is the bootstrap's, by lesion or patient and by seed; of costs it is the least and
        the largest of the runs.
        """
        if wanted not in self._done:
            self._done[wanted] = self._measure(wanted)
        return self._done[wanted]

    def _measure(self, wanted: Measured) -> Found:
        system = self._systems[wanted.system]
        runs, left_out = self.runs_of(system)
        if runs.empty:
            return replace(_none(self._why_none(system)), unrecorded=True)
        if wanted.metric.startswith(("efficiency/", "time/")):
            found = _of_costs(runs, wanted.metric)
        else:
            found = self._of_predictions(runs, wanted)
        problems = [found.problem] if found.problem else _unmet(runs, system.requires)
        how = f"{found.how}; {_described(runs, system)}{left_out}" if found.how else ""
        return Found(found.value, found.low, found.high, found.text, _MEASURED, how, "; ".join(problems))

    def runs_of(self, system: System) -> tuple[pd.DataFrame, str]:
        """The finished runs of a system under one setting, one a seed, and what was left out, in words.

        Those that meet the system's requirements, if there are any. Of several settings the one with most seeds, then
        the newest; of several runs of a seed the newest.
        """
        tags = {"kind": "run", "preset": system.preset, "data": system.data, "split": system.split}
        found = self._runs[self._runs["status"] == "FINISHED"] if len(self._runs) else self._runs
        for tag, value in tags.items():
            found = found[_text(found, f"tags.{tag}") == value]
        if self._studies:
            found = found[_text(found, "tags.study").isin(self._studies)]
        tested = found[_text(found, f"metrics.{SPLIT}/accuracy") != ""]
        if tested.empty:
            return tested, ""
        tested = _meeting(tested, system.requires)
        settings = [name for name in tested if str(name).startswith("params.") and not str(name).startswith(_FREE)]
        number = tested[settings].fillna("").apply(tuple, axis=1)
        seeds = _text(tested, "tags.seed").groupby(number, sort=False).nunique()
        chosen = tested.loc[number == seeds.idxmax()]  # runs come newest first, and so do settings
        others = len(tested) - len(chosen)
        newest = chosen.loc[~_text(chosen, "tags.seed").duplicated()]
        newest = newest.sort_values("tags.seed", kind="stable")  # so that the same runs draw the same samples
        return newest, f"; runs with other settings left out: {others}" if others else ""

    def _of_predictions(self, runs: pd.DataFrame, wanted: Measured) -> Found:
        try:
            frames = self._predictions(wanted.system, runs)
            row = intervals(frames, [wanted.metric], self._samples, self._seed, self._level).iloc[0]
        except DifferentImages as error:
            return _none(f"its seeds were tested on different images ({error})")
        except UserError as error:
            return _none(str(error))
        kind = f"{self._level:.0%} interval by group and seed"
        how = f"{wanted.metric} on {row['images']:,} images of {row['groups']:,} lesions or patients, {kind}"
        return Found(row["estimate"], row["low"], row["high"], f"{row['estimate']:.4g}", _MEASURED, how)

    def _predictions(self, system: str, runs: pd.DataFrame) -> list[pd.DataFrame]:
        if system not in self._frames:
            assert self._store is not None  # else there were no runs
            self._frames[system] = [history.predictions(self._store, run, SPLIT) for run in runs["run_id"]]
        return self._frames[system]

    def _why_none(self, system: System) -> str:
        among = f" in {' and '.join(self._studies)}" if self._studies else ""
        return f"no tested runs of {system.preset} (split {system.split}) are recorded{among}"


def _of_costs(runs: pd.DataFrame, metric: str) -> Found:
    values = pd.to_numeric(runs.get(f"metrics.{metric}", pd.Series(dtype=float)), errors="coerce").dropna()
    if values.empty:
        return _none(f"its runs have no {metric}")
    mean = float(values.mean())
    return Found(
        mean, float(values.min()), float(values.max()), f"{mean:.4g}", _MEASURED, f"{metric}, least to largest"
    )


def _meeting(runs: pd.DataFrame, requirements: Sequence[Requirement]) -> pd.DataFrame:
    """Those that meet all requirements; all of them if none does."""
    good = runs
    for each in requirements:
        good = good[_meets(good, each)]
    return runs if good.empty else good


def _unmet(runs: pd.DataFrame, requirements: Sequence[Requirement]) -> list[str]:
    """Why the runs say nothing about the paper."""
    return [each.otherwise for each in requirements if not _meets(runs, each).all()]


def _meets(runs: pd.DataFrame, wanted: Requirement) -> pd.Series:
    if wanted.at_least is None:
        return _text(runs, wanted.column) == wanted.equals
    return pd.to_numeric(_text(runs, wanted.column), errors="coerce") >= wanted.at_least


def _described(runs: pd.DataFrame, system: System) -> str:
    names = {"weights": "weights", "git_commit": "commit", "study": "study"}
    told = [f"{len(runs)} seed{'s' if len(runs) > 1 else ''} of {system.preset}, split {system.split}"]
    for tag, name in names.items():
        values = [value[:7] if tag == "git_commit" else value for value in _text(runs, f"tags.{tag}").unique() if value]
        told += [f"{name} {' and '.join(values)}"] if values else []
    return ", ".join(told)


def _none(problem: str) -> Found:
    return Found(math.nan, math.nan, math.nan, "-", _MEASURED, "", problem)


def _text(frame: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].astype(object).where(frame[column].notna(), "").astype(str)
