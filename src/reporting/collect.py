"""Runs of a study -> the table; origins, commands, predictions."""

import difflib
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.errors import ConfigError, UserError
from src.metrics.formatting import count, is_cost, joined
from src.metrics.pareto import (
    Scale,
    contributions,
    crowding,
    front,
    hypervolume,
    knee,
    over_time,
    ranks,
)
from src.metrics.registry import (
    COMPRESSION,
    LOST,
    Limit,
    Objective,
    describe,
    parse_limits,
    parse_objectives,
    recorded_name,
)
from src.reporting import style
from src.reporting.comparison import compare
from src.reporting.decisions import quality_objective
from src.reporting.record import Report
from src.sweep.overrides import scan
from src.tracking import read
from src.tracking import read as cache
from src.tracking import read as history
from src.tracking.run import masked
from src.tracking.store import Store

NO_TRIALS = ("study", "audit", "evaluation")  # kinds of runs that trained nothing
STUDY, TRIAL = (
    "study",
    "trial",
)  # the tag `kind` of a study's own run, and of a run above several seeds
COST = "efficiency/flops"  # the second objective of a study that has one only
DEFAULT = (Objective("val/balanced_accuracy", "maximize"), Objective(COST, "minimize"))
SHOWN_NAMES = 12


@dataclass(frozen=True)
class StudyRuns:
    """Runs that belong together.

    Attributes:
        name: The study's, or what was asked for.
        run_id: Of the study's own run; empty if there is none, as for a filter.
        trials: A row a trial, as `src.tracking.read.runs` gives them.
        seeds: The runs below trials of several seeds.
        own_objectives: What the study itself was after; empty if it does not say so.
        own_limits: What it had to keep.
        sweeps: The file of sweeps/ that it came from; empty if none.
        fixed_overrides: What all its trials were given on the command line, quoted for a shell;
            None if not recorded.
        origins: The runs that compressed trials were made from, wherever they stand.
    """

    name: str
    run_id: str
    trials: pd.DataFrame
    seeds: pd.DataFrame
    own_objectives: tuple[Objective, ...] = ()
    own_limits: tuple[Limit, ...] = ()
    sweeps: str = ""
    fixed_overrides: str | None = None
    origins: pd.DataFrame = field(default_factory=pd.DataFrame)

    def runs_of(self, run_id: str) -> list[str]:
        """The trained runs of a trial: its finished seeds, or itself."""
        if self.seeds.empty:
            return [run_id]
        below = self.seeds[
            (self.seeds["parent_id"] == run_id) & (self.seeds["status"] == "FINISHED")
        ]
        seeds = pd.to_numeric(below.get("tags.seed", pd.Series(dtype=float)), errors="coerce")
        return list(below.loc[seeds.sort_values().index, "run_id"]) or [run_id]

    def before(self, moment: pd.Timestamp) -> "StudyRuns":
        """What the study was at an earlier time: the trials that had ended by then."""
        name = f"{self.name} before {moment:%Y-%m-%d %H:%M}"
        return replace(
            self, name=name, run_id="", trials=self.trials[self.trials["end_time"] < moment]
        )


def study(runs: pd.DataFrame, name: str, store: Store) -> StudyRuns:
    """The study of that name.

    Args:
        runs: All of the experiment.
        name: Of the study.
        store: For what is said when there is none.

    Raises:
        UserError: There is no such study, or none of its trials has ended well; the message names
            those there are.
    """
    tagged = runs[_text(runs, "tags.study") == name]
    parents = tagged[_text(tagged, "tags.kind") == STUDY]
    trials = tagged[tagged["parent_id"].isin(parents["run_id"])] if len(parents) else _tops(tagged)
    if trials.empty:
        known = [str(each) for each in _text(runs, "tags.study").unique() if each]
        raise UserError(
            f"study={name}: no such study in {_where(store)}, or it has no trials; there {_listed(known)}"
        )
    own = parents.iloc[0] if len(parents) else pd.Series(dtype=object)
    objectives, limits = _purpose(own, trials)
    given = own.get("tags.fixed_overrides")
    return StudyRuns(
        name,
        str(own.get("run_id", "")),
        _own_columns(trials),
        _own_columns(
            tagged[tagged["parent_id"].isin(trials["run_id"]) & ~_made_from_parent(tagged)]
        ),
        objectives,
        limits,
        str(own.get("tags.sweeps", "") or "") if isinstance(own.get("tags.sweeps"), str) else "",
        given if isinstance(given, str) else None,
        _origins(runs, trials),
    )


def selection(runs: pd.DataFrame, name: str, store: Store) -> StudyRuns:
    """All runs that were found by something else than a study's name, each as a trial.

    Args:
        runs: Those that were found; a study's own run is left out, a seed stands below its trial if
            that was found too.
        name: What was asked for.
        store: For what is said when there is none.

    Raises:
        UserError: There is none.
    """
    trials = _tops(runs)
    if trials.empty:
        raise UserError(f"{name}: finds no runs in {_where(store)}")
    seeds = runs[runs["parent_id"].isin(trials["run_id"]) & ~_made_from_parent(runs)]
    if _text(trials, "tags.origin").ne("").any():
        runs = cache.cached_runs(store)  # what was asked for need not hold the origins
    objectives, limits = _purpose(pd.Series(dtype=object), trials)
    origins = _origins(runs, trials)
    return StudyRuns(
        name, "", _own_columns(trials), _own_columns(seeds), objectives, limits, origins=origins
    )


def purpose(
    studies: Sequence[StudyRuns],
    objectives: Sequence[object] | None,
    limits: Sequence[object] | None,
) -> tuple[list[Objective], list[Limit], list[str]]:
    """What the front is drawn over: as the command line says, else as the first study was.

    Args:
        studies: To be reported on.
        objectives: A list of `{metric: ..., direction: ...}` or of metrics' names; None or empty:
            the study's own.
        limits: Texts such as "efficiency/params <= 692e3"; None: the study's own, empty: none.

    Returns:
        Objectives, limits, and what a reader has to know about them.

    Raises:
        ConfigError: An objective or a limit that is none, or of a metric that no run has; or costs
            alone.
    """
    notes = []
    if objectives:
        entries = [{"metric": each} if isinstance(each, str) else each for each in objectives]
        chosen = _under("objectives", lambda: parse_objectives({"objectives": entries}))
    else:
        chosen = list(studies[0].own_objectives or DEFAULT)
        if any(
            other.own_objectives not in ((), studies[0].own_objectives) for other in studies[1:]
        ):
            notes.append(
                f"The studies had different objectives; these fronts are drawn over {studies[0].name}'s."
            )
    if len(chosen) == 1:
        metric = COST if chosen[0].metric != COST else DEFAULT[0].metric
        chosen.append(Objective(metric, describe(metric).direction))
        notes.append(
            f"There was one objective, {chosen[0]}; a front needs two: {chosen[1]} is the other."
        )
    given = (
        list(studies[0].own_limits)
        if limits is None
        else _under("limits", lambda: parse_limits({"limits": limits}))
    )
    if all(is_cost(each.metric) for each in chosen):
        raise ConfigError(
            "objectives", "must have one that is no cost, for without a quality none is best"
        )
    recorded = {
        str(name)
        for each in studies
        for name in each.trials.columns
        if str(name).startswith("metrics.")
    }
    wanted = {f"objectives[{number}]": each.metric for number, each in enumerate(chosen)}
    wanted |= {f"limits[{number}]": each.metric for number, each in enumerate(given)}
    for key, metric in wanted.items():
        if f"metrics.{recorded_name(metric)}" not in recorded:
            raise ConfigError(key, f"no run has {metric}; there {_listed(_like(metric, recorded))}")
    return chosen, given, notes


def _like(metric: str, recorded: set[str]) -> list[str]:
    """Metrics that somebody may have meant: close ones, else those of the same kind, else all."""
    names = sorted(name.removeprefix("metrics.best/").removeprefix("metrics.") for name in recorded)
    useful = [name for name in dict.fromkeys(names) if name.startswith(("val/", "efficiency/"))]
    same = [name for name in useful if name.split("/")[0] == metric.split("/")[0]]
    return difflib.get_close_matches(metric, useful, n=5, cutoff=0.75) or same or useful or names


def known_studies(runs: pd.DataFrame) -> list[str]:
    """Names of the studies, the newest first."""
    return [str(name) for name in _text(runs, "tags.study").unique() if name]


def _own_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that only other runs of the experiment have."""
    fixed = [
        name for name in runs.columns if not str(name).startswith(("tags.", "params.", "metrics."))
    ]
    filled = runs.columns[runs.notna().any() | runs.columns.isin(fixed)]
    return runs[filled].reset_index(drop=True)


def _tops(runs: pd.DataFrame) -> pd.DataFrame:
    """Trials and runs of their own: not the seeds below a trial that is there too, and nothing that trained nothing."""
    kinds = _text(runs, "tags.kind")
    above = set(runs.loc[kinds == TRIAL, "run_id"])
    return runs[~kinds.isin(NO_TRIALS) & ~runs["parent_id"].isin(above)]


def _made_from_parent(runs: pd.DataFrame) -> pd.Series:
    """Which runs stand below another one because they are that one compressed, and are no seed of it."""
    return (_text(runs, "tags.origin") != "") & (_text(runs, "tags.origin") == runs["parent_id"])


def _origins(runs: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """The runs that some trials were made from."""
    wanted = _text(trials, "tags.origin")
    return _own_columns(runs[runs["run_id"].isin(wanted[wanted != ""])])


def _purpose(
    own: pd.Series, trials: pd.DataFrame
) -> tuple[tuple[Objective, ...], tuple[Limit, ...]]:
    """Objectives and limits as recorded: on the study's run, else in the config of its trials."""
    told = own.get("tags.objectives")
    objectives = [
        {"metric": metric, "direction": direction}
        for direction, metric in re.findall(
            r"(maximize|minimize) ([^;\s]+)", told if isinstance(told, str) else ""
        )
    ]
    told = own.get("tags.limits")
    if isinstance(told, str):
        limits = [text.strip() for text in told.split(";") if text.strip()]
    else:
        limits = re.findall(r'"([^"]+[<>]=[^"]+)"', _first(trials, "params.objective.limits"))
    try:
        parsed = tuple(parse_objectives({"objectives": objectives})) if objectives else ()
        return parsed, tuple(parse_limits({"limits": limits}))
    except ConfigError:  # recorded by a version that knew other metrics
        return (), ()


def _under(key: str, parse):  # type: ignore[no-untyped-def]
    try:
        return parse()
    except ConfigError as error:
        raise ConfigError(error.key.replace("objective.", "", 1) or key, error.problem) from None


def _first(frame: pd.DataFrame, column: str) -> str:
    found = _text(frame, column)
    found = found[found != ""]
    return str(found.iloc[0]) if len(found) else ""


def _text(frame: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].astype(object).where(frame[column].notna(), "")


def _where(store: Store) -> str:
    return f"{masked(store.uri)} (experiment {store.experiment})"


def _listed(names: list[str]) -> str:
    if not names:
        return "is none"
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{'are' if len(names) > 1 else 'is'} {', '.join(names[:SHOWN_NAMES])}{more}"


log = logging.getLogger(__name__)


class PredictionReader:
    """Reads a store for a report.

    Args:
        store: Opened if it is not yet.
        studies: That are reported on.
        refresh: Read histories from the store again.
    """

    def __init__(self, store: Store, studies: Sequence[StudyRuns], refresh: bool = False) -> None:
        self.store = store
        self._refresh = refresh
        self._study = {run_id: study for study in studies for run_id in study.trials["run_id"]}
        self._predictions: dict[tuple[str, str], list[pd.DataFrame]] = {}

    def study_of(self, run_id: str) -> StudyRuns:
        """The study that a trial belongs to."""
        return self._study[run_id]

    def predictions(self, run_id: str, split: str) -> list[pd.DataFrame]:
        """What a trial's nets predicted on a split, a table a seed; empty where it was not recorded for every seed."""
        key = (run_id, split)
        if key not in self._predictions:
            try:
                self._predictions[key] = [
                    history.predictions(self.store, each, split)
                    for each in self._study[run_id].runs_of(run_id)
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
            return read.artifact(
                self.store, self._study[run_id].runs_of(run_id)[0], "config.yaml"
            ).parent
        except UserError:
            return None


FIGURE = "origin/"  # before the name of a metric: that of the origin
SIZE = "efficiency/size_mb"
FEW = 3  # compressed models that a sentence names
POINT = 1.0  # percentage points that a compression may cost
LEGEND = "from a model to its compression"
OUTSIDE = "origin, no trial of this report"
_SHARES = {"size": SIZE, "latency": "efficiency/latency_ratio", "FLOPs": "efficiency/flops"}
_ENDS = ("/low", "/high")  # of a metric's interval


def compressed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the trials that are compressed ones."""
    return table[table["compression"] != ""] if "compression" in table else table.iloc[:0]


def with_origins(
    table: pd.DataFrame, origins: pd.DataFrame, metrics: Sequence[str]
) -> pd.DataFrame:
    """Add columns origin_label and `origin/<metric>`; without an origin those of the compression go too.

    Args:
        table: A row a trial, from `src.reporting.comparison.compare`.
        origins: The runs that they were made from, those that the store has, likewise.
        metrics: Recorded names.
    """
    if not (table["origin"] != "").any():
        return table.drop(columns=list(COMPRESSION))
    known = origins.set_index("run_id").reindex(table["origin"])
    model = (
        known["tags.model"].fillna("run")
        if "tags.model" in known
        else pd.Series("run", index=known.index)
    )
    label = (model + " " + table["origin"].str[:6].to_numpy()).to_numpy()
    figures = {
        f"{FIGURE}{name}": known.get(f"metrics.{name}", pd.Series(np.nan, known.index))
        for name in metrics
    }
    values = pd.DataFrame(
        {name: values.to_numpy(dtype=float) for name, values in figures.items()}, index=table.index
    )
    return table.assign(origin_label=np.where(table["origin"] != "", label, ""), **values)


def joins(report: Report, cost: str) -> pd.DataFrame:
    """The lines from origins to compressed trials on one axis.

    Returns:
        A row a line: run_id, label and compression of the trial, origin, origin_label, from_x,
        from_y, to_x, to_y, and whether the origin is outside the report, so that it has no point of
        its own.
    """
    rows = compressed(style.drawn(report, cost))
    names = {
        "from_x": f"{FIGURE}{cost}",
        "from_y": f"{FIGURE}{report.quality}",
        "to_x": cost,
        "to_y": "quality",
    }
    columns = ["run_id", "label", "compression", "origin", "origin_label"]
    found = rows.reindex(columns=[*columns, *names.values()])
    found.columns = pd.Index([*columns, *names])
    inside = set(style.drawn(report, cost)["run_id"])
    found = found.assign(outside=~found["origin"].isin(inside))
    return found.replace([np.inf, -np.inf], np.nan).dropna(subset=["from_x", "from_y"])


def lost(report: Report) -> pd.DataFrame:
    """What compression cost, a row a compressed trial and metric; empty where no trial is compressed.

    Returns:
        Columns label, compression, made_from; size, latency and FLOPs as shares of the origin's,
        where both are known; metric; lost, low and high: by how many percentage points the
        compressed net is worse, with the paired interval on the same images; and the split that
        these are of.
    """
    rows = compressed(report.table)
    shares = {
        title: rows[name] / rows[f"{FIGURE}{name}"]
        for title, name in _SHARES.items()
        if f"{FIGURE}{name}" in rows
    }
    about = (
        rows[["label", "compression"]].assign(made_from=rows["origin_label"], **shares)
        if len(rows)
        else rows
    )
    names = [
        str(each)
        for each in rows
        if str(each).startswith(f"{LOST}/") and not str(each).endswith(_ENDS)
    ]
    tables = []
    for name in names:
        figures = (
            rows.reindex(columns=[name, *(f"{name}{end}" for end in _ENDS)]).astype(float) * 100
        )
        figures.columns = pd.Index(["lost", "low", "high"])
        tables.append(
            about.assign(metric=name.removeprefix(f"{LOST}/"))
            .join(figures)
            .assign(split=rows["lost_on"])
        )
    if not tables:
        return pd.DataFrame()
    found = pd.concat(tables).sort_index(kind="stable")
    return found[found["lost"].notna()].dropna(axis="columns", how="all").reset_index(drop=True)


def said(report: Report) -> list[str]:
    """What compression cost, in a sentence a metric and split: who surely loses less than a point, who surely more.

    "Surely": the whole interval is on that side.
    """
    found = lost(report)
    if found.empty:
        return []

    def named(rows: pd.DataFrame) -> str:
        verb = "lose" if len(rows) > 1 else "loses"
        return (
            f"{joined(rows['label'].tolist())} {verb}"
            if len(rows) <= FEW
            else f"{len(rows)} {verb}"
        )

    sentences = []
    for (metric, split), rows in found.groupby(["metric", "split"], sort=False):
        small, large = rows[rows["high"] < POINT], rows[rows["low"] > POINT]
        label = describe(f"{split}/{metric}").label
        told = [f"{named(small)} surely less than a point of {label}"] if len(small) else []
        told += (
            [f"{named(large)} surely more than a point{'' if told else f' of {label}'}"]
            if len(large)
            else []
        )
        unsure = len(rows) - len(small) - len(large)
        if not told:
            told = [f"whether any loses more or less than a point of {label} is not settled"]
        elif unsure:
            told.append(f"of {unsure} it is not settled")
        sentences.append(
            f"Of {count(len(rows), 'compressed model')} beside their origins: {'; '.join(told)}."
        )
    return sentences


COSTS = (
    "efficiency/flops",
    "efficiency/params",
    "efficiency/latency_ratio",
    "efficiency/latency_ms/b1/p50",
    "efficiency/peak_memory_mb",
)


def values_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> np.ndarray:
    """The objectives of each trial, (N, M); a row of NaN where the trial has no result that counts, or only a part."""
    names = [recorded_name(objective.metric) for objective in objectives]
    values = table.reindex(columns=names).to_numpy(dtype=float, copy=True)
    values[~table["feasible"].to_numpy(dtype=bool) | np.isnan(values).any(axis=1)] = np.nan
    return values


def compared(
    study: StudyRuns, objectives: Sequence[Objective], limits: Sequence[Limit]
) -> pd.DataFrame:
    """The trials as `compare` gives them, with study, time of their end, and a short unique name each."""
    table = compare(study.trials, objectives, limits).copy()
    ended = study.trials.set_index("run_id")["end_time"]
    table["study"] = study.name
    repeats = study.trials.set_index("run_id").get("params.repeats", pd.Series(dtype=object))
    table["repeats"] = pd.to_numeric(repeats.reindex(table["run_id"]), errors="coerce").to_numpy()
    table["ended"] = ended.reindex(table["run_id"]).to_numpy()
    metrics = dict.fromkeys(
        [*map(recorded_name, (each.metric for each in objectives)), *COSTS, SIZE]
    )
    table = with_origins(table, study.origins, list(metrics))
    model = table["model"].where(table["model"] != "", "trial")
    if "compression" in table:
        model = (model + " " + table["compression"]).str.strip()
    number = table["trial"].where(table["trial"] != "", table["run_id"].str[:8]).astype(str)
    label = model + " #" + number
    twins = label.duplicated(keep=False)
    table["label"] = label.where(~twins, label + " " + table["run_id"].str[:6])
    return table


def rank(
    table: pd.DataFrame, objectives: Sequence[Objective], scale: Scale
) -> tuple[pd.DataFrame, str]:
    """Add rank, crowding, contribution, knee and state to a compared table.

    Args:
        table: From `compared`, of one study.
        objectives: M of them.
        scale: On which distances and volumes are measured.

    Returns:
        The table, and how the knee was found, in words.
    """
    values = values_of(table, objectives)
    known = ~np.isnan(values).any(axis=1)
    losses = scale.transform(values)
    places = pd.Series(np.nan, index=table.index)
    places[known] = ranks(values[known], list(objectives)).astype(float)
    rarity, share = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for place in places.dropna().unique():
        rows = np.flatnonzero(places == place)
        rarity[rows] = crowding(losses[rows])
    members = np.flatnonzero(table["front"])
    share[members] = contributions(losses[members])
    at, words = knee(losses[members])
    bend = np.zeros(len(table), dtype=bool)
    if at is not None:
        bend[members[at]] = True
    table = table.assign(
        rank=places, crowding=rarity, contribution=share, knee=bend, state=_states(table, known)
    )
    return table, words


def progress(table: pd.DataFrame, objectives: Sequence[Objective], scale: Scale) -> pd.DataFrame:
    """The hypervolume after each trial that has ended, in order of time; columns of `Report.progress`."""
    ended = table[table["ended"].notna()].sort_values("ended", kind="stable")
    losses = scale.transform(values_of(ended, objectives))
    return pd.DataFrame(
        {
            "study": ended["study"].to_numpy(),
            "trials": np.arange(1, len(ended) + 1),
            "ended": ended["ended"].to_numpy(),
            "hypervolume": over_time(losses),
        }
    )


def comparison(
    tables: Sequence[pd.DataFrame], objectives: Sequence[Objective], scale: Scale
) -> tuple[pd.DataFrame, list[str]]:
    """Studies side by side; columns of `Report.comparison`.

    A member of a front is new if no other study's front has a point that is at least as good in
    every objective.

    Args:
        tables: One a study, from `rank` or `compared`.
        objectives: Of all of them.
        scale: Fitted on all of them.

    Returns:
        The table, and the labels of the new points of the first study.
    """
    fronts = [values_of(table[table["front"]], objectives) for table in tables]
    rows, fresh = [], []
    for number, (table, own) in enumerate(zip(tables, fronts, strict=True)):
        others = [each for other, each in enumerate(fronts) if other != number and len(each)]
        new = [_is_new(point, others, objectives) for point in own]
        if number == 0:
            fresh = (
                list(table.loc[table["front"], "label"][np.array(new, dtype=bool)]) if new else []
            )
        best = {
            f"best {recorded_name(each.metric)}": _best(own[:, column], each)
            for column, each in enumerate(objectives)
        }
        rows.append(
            {
                "study": table["study"].iloc[0] if len(table) else "",
                "trials": len(table),
                "front": len(own),
                "hypervolume": hypervolume(scale.transform(own)),
                "new_points": int(np.sum(new)),
                **best,
            }
        )
    return pd.DataFrame(rows), fresh


def _is_new(
    point: np.ndarray, others: Sequence[np.ndarray], objectives: Sequence[Objective]
) -> bool:
    for other in others:
        same = (other == point).all(axis=1).any()
        beaten = not front(np.vstack([point[None], other]), list(objectives))[0]
        if same or beaten:
            return False
    return True


def _best(values: np.ndarray, objective: Objective) -> float:
    if not len(values):
        return float("nan")
    return float(values.max() if objective.direction == "maximize" else values.min())


def _states(table: pd.DataFrame, known: np.ndarray) -> pd.Series:
    state = table["status"].str.lower()
    finished = table["status"] == "FINISHED"
    state = state.mask(finished & ~table["feasible"], "over limit")
    state = state.mask(finished & table["feasible"] & ~known, "no value")
    state = state.mask(finished & table["feasible"] & known, "dominated")
    return state.mask(table["front"], "front")


def quality_of(objectives: Sequence[Objective]) -> str:
    """Which metric is the quality, by its recorded name: the one that the answers are about."""
    return recorded_name(quality_objective(objectives).metric)


def costs_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Which costs pictures can show, those that any trial has: FLOPs, parameters, latency, then other objectives."""
    others = [each.metric for each in objectives if is_cost(each.metric)]
    # what is stored in fewer bits has the same FLOPs and parameters: size and latency tell it apart
    known = (COSTS[0], SIZE, COSTS[2], COSTS[1], *COSTS[3:]) if len(compressed(table)) else COSTS
    names = list(dict.fromkeys([*known, *others]))
    return [name for name in names if name in table and table[name].notna().any()]


OF_A_STUDY = (
    "repeats=",
    "dry_run=",
    "test=",
    "seed=",
    "study=",
)  # a single run has none of these, or its own


def retrain(study: StudyRuns, trial: pd.Series, artifacts: Path | None) -> str:
    """One line for a shell that trains a trial's configuration again, as a run of its own.

    Args:
        study: Of the trial.
        trial: Its row, as the store gives it: `tags.overrides`, `tags.seed`, `tags.kind`.
        artifacts: The folder that holds the trained run's config.yaml; None if it is on a server.

    Returns:
        The overrides as they were typed, where the record holds them all. Else, for studies that
        were recorded without, Hydra is pointed to the recorded config; empty where not even that is
        at hand.
    """
    cell = [
        f"{key}={value}" for key, value in scan(_override_text(trial.get("tags.overrides"))).items()
    ]
    seed = _override_text(trial.get("tags.seed"))
    # a run of its own, unlike a trial, has all its overrides in its tag; a compressed one stands
    # below its origin
    above, origin = (_override_text(trial.get(name)) for name in ("parent_id", "tags.origin"))
    fixed = "" if not study.run_id and above in ("", origin) else study.fixed_overrides
    if fixed is None:
        return _from_config(artifacts)
    shared = shlex.split(fixed)
    kept = [each for each in [*shared, *cell] if not each.startswith(OF_A_STUDY)]
    # the file of sweeps/ says MULTIRUN, which the command line overrules
    file = [f"sweeps={study.sweeps}", "hydra.mode=RUN"] if study.sweeps else []
    kept = [each for each in kept if not each.startswith("sweeps=")]
    if origin:
        kept = [
            f"origin={_origin(study, trial)}" if each.startswith("origin=") else each
            for each in kept
        ]
    one_of_several = ["repeats=1"] if study.sweeps else []
    seeded = [f"seed={int(float(seed))}"] if seed else []
    return shlex.join(["python", "-m", "src.train", *file, *kept, *one_of_several, *seeded])


def _origin(study: StudyRuns, trial: pd.Series) -> str:
    """The run that a trial's first seed was made from: the trial's own origin is a trial, too."""
    first = study.runs_of(str(trial.get("run_id")))[0]
    own = study.seeds[study.seeds["run_id"] == first] if len(study.seeds) else study.seeds
    return _override_text((own.iloc[0] if len(own) else trial).get("tags.origin"))


def _from_config(artifacts: Path | None) -> str:
    if artifacts is None or not (artifacts / "config.yaml").exists():
        return ""
    where = ["--config-path", str(artifacts), "--config-name", "config"]
    return shlex.join(
        [
            "python",
            "-m",
            "src.train",
            *where,
            "study=null",
            "repeats=1",
            "hydra.run.dir=logs/runs/again",
        ]
    )


def _override_text(value: object) -> str:
    return "" if value is None or value != value else str(value)
