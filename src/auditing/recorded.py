"""What recorded runs say of a paper's systems: metrics over seeds, with intervals, from their predictions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from src.auditing.claims import MeasuredClaim, Paper
from src.auditing.figures import Found
from src.auditing.selection import SPLIT, Chosen, choose
from src.core.errors import UserError
from src.metrics.bootstrap import DifferentImagesError, intervals
from src.metrics.paired import paired_difference
from src.tracking import read
from src.tracking.store import Store

_MEASURED = frozenset({"measured"})


class ClaimBootstrap(NamedTuple):
    """Samples, seed of the random numbers and coverage of the intervals."""

    samples: int = 2000
    seed: int = 0
    level: float = 0.95


class Runs:
    """Recorded runs as the figures of an audit.

    Args:
        runs: All of the store's experiment, as `src.tracking.read.runs` gives them; empty where
            there is no store.
        store: For their predictions; None where there is no store.
        paper: Its systems.
        studies: Look at runs of these only; empty: at all.
        seeds: A figure of fewer decides nothing.
        bootstrap: Of the intervals.
    """

    def __init__(
        self,
        runs: pd.DataFrame,
        store: Store | None,
        paper: Paper,
        studies: Sequence[str] = (),
        seeds: int = 3,
        bootstrap: ClaimBootstrap = ClaimBootstrap(),  # noqa: B008  it cannot be changed
    ) -> None:
        self._runs = runs
        self._store = store
        self._systems = paper.systems
        self._studies = studies
        self._seeds = seeds
        self._bootstrap = bootstrap
        self._done: dict[MeasuredClaim, Found] = {}
        self._chosen: dict[str, Chosen] = {}
        self._frames: dict[str, list[pd.DataFrame]] = {}

    def measure(self, wanted: MeasuredClaim) -> Found:
        """A metric of a system: mean over its seeds and interval, or why there is none.

        Of predictions the interval is the bootstrap's, by lesion or patient and by seed, and of two
        systems that of the paired difference; of costs it is the least and the largest of the runs.
        """
        if wanted not in self._done:
            self._done[wanted] = self._measure(wanted)
        return self._done[wanted]

    def _measure(self, wanted: MeasuredClaim) -> Found:
        chosen = [self._of(name) for name in wanted.systems]
        problems = list(dict.fromkeys(problem for each in chosen for problem in each.problems))
        if any(each.runs.empty for each in chosen):
            lacking = [problem for each in chosen if each.runs.empty for problem in each.problems]
            return _none("; ".join(lacking), unrecorded=True)
        try:
            found = self._found(wanted, chosen[0].runs)
        except DifferentImagesError as error:
            what = "the two systems or their seeds" if wanted.less else "its seeds"
            return _none(f"{what} were tested on different images ({error})")
        except UserError as error:
            return _none(str(error))
        if found.problem:
            return found
        how = "; ".join([found.how, *(each.described for each in chosen)])
        return Found(
            found.value, found.low, found.high, found.text, _MEASURED, how, "; ".join(problems)
        )

    def _found(self, wanted: MeasuredClaim, runs: pd.DataFrame) -> Found:
        if wanted.is_cost:
            return _of_costs(runs, wanted.metric)
        frames = [self._predictions(name) for name in wanted.systems]
        kind = f"{self._bootstrap.level:.0%} interval by group and seed"
        if wanted.less:
            names = (wanted.system, wanted.less)
            value, low, high, _ = paired_difference(
                frames[0], frames[1], wanted.metric, *self._bootstrap, names
            )
            how = f"{wanted.metric}, {wanted.system} less {wanted.less} on the same images, paired {kind}"
        else:
            row = intervals(frames[0], [wanted.metric], *self._bootstrap).iloc[0]
            value, low, high = row["estimate"], row["low"], row["high"]
            how = f"{wanted.metric} on {row['images']:,} images of {row['groups']:,} lesions or patients, {kind}"
        return Found(value, low, high, f"{value:.4g}", _MEASURED, how)

    def _of(self, system: str) -> Chosen:
        if system not in self._chosen:
            self._chosen[system] = choose(
                self._runs, self._systems[system], self._studies, self._seeds
            )
        return self._chosen[system]

    def _predictions(self, system: str) -> list[pd.DataFrame]:
        if system not in self._frames:
            assert self._store is not None  # else there were no runs
            runs = self._of(system).runs["run_id"]
            self._frames[system] = [read.predictions(self._store, run, SPLIT) for run in runs]
        return self._frames[system]


def _of_costs(runs: pd.DataFrame, metric: str) -> Found:
    values = pd.to_numeric(
        runs.get(f"metrics.{metric}", pd.Series(dtype=float)), errors="coerce"
    ).dropna()
    if values.empty:
        return _none(f"its runs have no {metric}")
    mean, how = float(values.mean()), f"{metric}, least to largest"
    return Found(mean, float(values.min()), float(values.max()), f"{mean:.4g}", _MEASURED, how)


def _none(problem: str, unrecorded: bool = False) -> Found:
    return Found(math.nan, math.nan, math.nan, "-", _MEASURED, "", problem, unrecorded)
