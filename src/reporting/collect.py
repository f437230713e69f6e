"""Reads the runs of a study and computes the table of a report: one row per trial."""

import difflib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.core.errors import ConfigError, UserError
from src.metrics import pareto
from src.metrics.formatting import is_cost
from src.metrics.registry import (
    COMPRESSION,
    LOST,
    PRIMARY,
    Limit,
    Objective,
    describe,
    parse_limits,
    parse_objectives,
    recorded_name,
)
from src.reporting.comparison import compare
from src.reporting.decisions import quality_objective
from src.sweep.overrides import scan
from src.tracking import read
from src.tracking.run import masked
from src.tracking.store import Store

FLOPS, SIZE = "efficiency/flops", "efficiency/size_mb"
COSTS = (
    FLOPS,
    "efficiency/params",
    "efficiency/latency_ratio",
    "efficiency/latency_ms/b1/p50",
    "efficiency/peak_memory_mb",
)
DEFAULT = (Objective(f"val/{PRIMARY}", "maximize"), Objective(FLOPS, "minimize"))
MOST_NAMES = 12  # in an error message
_UNTRAINED = ("study", "audit", "evaluation")  # kinds of runs without a trained net
# A trial gets these from its study; a single run does not take them.
_OF_A_STUDY = ("repeats=", "dry_run=", "test=", "seed=", "study=")


@dataclass(frozen=True)
class StudyRuns:
    """The runs of one study, or of a search.

    Attributes:
        name: Of the study, or the search.
        run_id: The run of the study itself; empty if there is none, as for a search.
        trials: One row per trial, as `src.tracking.read.runs` returns them.
        seeds: The runs below trials with several seeds.
        own_objectives: The recorded objectives of the study; empty if none are recorded.
        own_limits: The recorded limits.
        sweeps: The file of sweeps/ that the study was started with; empty if none.
        fixed_overrides: What all trials had on the command line, quoted for a shell; None if it
            is not recorded.
        origins: The runs that compressed trials were made from, of this study or another one.
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

    def seeds_of(self, run_id: str) -> pd.DataFrame:
        """The runs below a trial, by seed; no rows if it has none."""
        if self.seeds.empty:
            return self.seeds
        below = self.seeds[self.seeds["parent_id"] == run_id]
        seeds = pd.to_numeric(below.get("tags.seed", pd.Series(dtype=float)), errors="coerce")
        return below.loc[seeds.sort_values().index] if len(seeds) else below

    def runs_of(self, run_id: str) -> list[str]:
        """The trained runs of a trial: its finished seeds, or the trial itself."""
        below = self.seeds_of(run_id)
        finished = below[below["status"] == "FINISHED"] if len(below) else below
        return list(finished["run_id"]) if len(finished) else [run_id]

    def before(self, moment: pd.Timestamp) -> "StudyRuns":
        """The study at an earlier time: the trials that had ended by then."""
        name = f"{self.name} before {moment:%Y-%m-%d %H:%M}"
        trials = self.trials[self.trials["end_time"] < moment]
        return replace(self, name=name, run_id="", trials=trials)


def study(runs: pd.DataFrame, name: str, store: Store) -> StudyRuns:
    """The study with this name.

    Args:
        runs: All runs of the experiment.
        name: Of the study.
        store: Named in the error message.

    Raises:
        UserError: There is no such study, or it has no trials; the message lists the studies.
    """
    tagged = runs[texts(runs, "tags.study") == name]
    parents = tagged[texts(tagged, "tags.kind") == "study"]
    trials = tagged[tagged["parent_id"].isin(parents["run_id"])] if len(parents) else _tops(tagged)
    if trials.empty:
        raise UserError(
            f"study={name}: no such study in {_where(store)}, or it has no trials; "
            f"there {_listed(known_studies(runs))}"
        )
    parent = parents.iloc[0].dropna() if len(parents) else pd.Series(dtype=object)
    objectives, limits = _recorded_purpose(parent, trials)
    return StudyRuns(
        name,
        str(parent.get("run_id", "")),
        _filled(trials),
        _filled(_seeds(tagged, trials)),
        objectives,
        limits,
        str(parent.get("tags.sweeps", "")),
        parent.get("tags.fixed_overrides"),
        _origins(runs, trials),
    )


def selection(runs: pd.DataFrame, name: str, store: Store) -> StudyRuns:
    """The runs of a search, each as a trial.

    Args:
        runs: The result of the search. Runs of studies are left out; a seed is below its trial if
            the search returned that, too.
        name: The search.
        store: Named in the error message.

    Raises:
        UserError: There are no runs.
    """
    trials = _tops(runs)
    if trials.empty:
        raise UserError(f"{name}: finds no runs in {_where(store)}")
    seeds = _filled(_seeds(runs, trials))
    objectives, limits = _recorded_purpose(pd.Series(dtype=object), trials)
    if texts(trials, "tags.origin").ne("").any():
        runs = read.cached_runs(store)  # the origins may be outside the search
    origins = _origins(runs, trials)
    return StudyRuns(name, "", _filled(trials), seeds, objectives, limits, origins=origins)


def known_studies(runs: pd.DataFrame) -> list[str]:
    """Names of the studies, the newest first."""
    return [str(name) for name in texts(runs, "tags.study").unique() if name]


def texts(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column with "" where a value, or the column, is missing."""
    if column not in frame:
        return pd.Series("", index=frame.index, dtype=object)
    return frame[column].astype(object).where(frame[column].notna(), "")


def purpose(
    studies: Sequence[StudyRuns],
    objectives: Sequence[object] | None,
    limits: Sequence[object] | None,
) -> tuple[list[Objective], list[Limit], list[str]]:
    """The objectives and limits of the front: from the command line, else from the first study.

    Args:
        studies: That are reported on.
        objectives: `{metric: ..., direction: ...}` or names of metrics; None or empty: those of
            the study.
        limits: Such as "efficiency/params <= 692e3"; None: those of the study, empty: none.

    Returns:
        Objectives, limits, and warnings about them.

    Raises:
        ConfigError: An invalid objective or limit, one of a metric that no run has, or costs only.
    """
    first, warnings = studies[0], []
    if objectives:
        entries = [{"metric": each} if isinstance(each, str) else each for each in objectives]
        chosen = _parsed("objectives", parse_objectives, entries)
    else:
        chosen = list(first.own_objectives or DEFAULT)
        if any(other.own_objectives not in ((), first.own_objectives) for other in studies[1:]):
            warnings.append(
                f"The studies have different objectives; the fronts use those of {first.name}."
            )
    if len(chosen) == 1:
        second = DEFAULT[0].metric if chosen[0].metric == FLOPS else FLOPS
        chosen.append(Objective(second, describe(second).direction))
        warnings.append(f"A front needs two objectives; {second} was added to {chosen[0].metric}.")
    if all(is_cost(each.metric) for each in chosen):
        raise ConfigError("objectives", "must have one that is no cost, else no model is the best")
    kept = list(first.own_limits) if limits is None else _parsed("limits", parse_limits, limits)
    names = [str(name) for each in studies for name in each.trials.columns]
    recorded = {name for name in names if name.startswith("metrics.")}
    wanted = {f"objectives[{number}]": each.metric for number, each in enumerate(chosen)}
    wanted |= {f"limits[{number}]": each.metric for number, each in enumerate(kept)}
    for key, metric in wanted.items():
        if f"metrics.{recorded_name(metric)}" not in recorded:
            raise ConfigError(key, f"no run has {metric}; there {_listed(_like(metric, recorded))}")
    return chosen, kept, warnings


def _parsed(key: str, parse: Callable[[dict[str, Any]], list[Any]], entries: object) -> list[Any]:
    """Parse entries of this command's config; errors name its keys."""
    try:
        return parse({key: entries})
    except ConfigError as error:
        raise ConfigError(error.key.replace("objective.", "", 1) or key, error.problem) from None


def _like(metric: str, recorded: set[str]) -> list[str]:
    """Similar metrics, else those of the same kind, else all."""
    names = sorted(name.removeprefix("metrics.best/").removeprefix("metrics.") for name in recorded)
    useful = [name for name in dict.fromkeys(names) if name.startswith(("val/", "efficiency/"))]
    same = [name for name in useful if name.split("/")[0] == metric.split("/")[0]]
    return difflib.get_close_matches(metric, useful, n=5, cutoff=0.75) or same or useful or names


def _seeds(runs: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """The runs below trials, without the compressed versions of a trial."""
    origin = texts(runs, "tags.origin")
    made_from_parent = (origin != "") & (origin == runs["parent_id"])
    return runs[runs["parent_id"].isin(trials["run_id"]) & ~made_from_parent]


def _origins(runs: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """The runs that compressed trials were made from."""
    return _filled(runs[runs["run_id"].isin(set(texts(trials, "tags.origin")) - {""})])


def _recorded_purpose(
    parent: pd.Series, trials: pd.DataFrame
) -> tuple[tuple[Objective, ...], tuple[Limit, ...]]:
    """Objectives and limits of the study's run; limits also from the config of its trials."""
    found = re.findall(r"(maximize|minimize) ([^;\s]+)", parent.get("tags.objectives", ""))
    objectives = [{"metric": metric, "direction": direction} for direction, metric in found]
    if "tags.limits" in parent:
        limits = [text.strip() for text in parent["tags.limits"].split(";") if text.strip()]
    else:
        configs = [text for text in texts(trials, "params.objective.limits") if text]
        limits = re.findall(r'"([^"]+[<>]=[^"]+)"', configs[0]) if configs else []
    try:
        parsed = tuple(parse_objectives({"objectives": objectives})) if objectives else ()
        return parsed, tuple(parse_limits({"limits": limits}))
    except ConfigError:  # recorded by a version with other metrics
        return (), ()


def _filled(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the tags, parameters and metrics that none of these runs has."""
    groups = runs.columns.str.startswith(("tags.", "params.", "metrics."))
    return runs.loc[:, ~groups | runs.notna().any()].reset_index(drop=True)


def _tops(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with a trained net, without the seeds of a trial that is there, too."""
    kinds = texts(runs, "tags.kind")
    above = set(runs.loc[kinds == "trial", "run_id"])
    return runs[~kinds.isin(_UNTRAINED) & ~runs["parent_id"].isin(above)]


def _where(store: Store) -> str:
    return f"{masked(store.uri)} (experiment {store.experiment})"


def _listed(names: list[str]) -> str:
    if not names:
        return "is none"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{'are' if len(names) > 1 else 'is'} {', '.join(names[:MOST_NAMES])}{more}"


class PredictionReader:
    """Reads predictions, learning curves and artifacts of the trials of a report.

    Args:
        store: Opened if it is not yet.
        studies: That are reported on.
        refresh: Whether learning curves are read from the store again.
    """

    def __init__(self, store: Store, studies: Sequence[StudyRuns], refresh: bool = False) -> None:
        self.store = store
        self._refresh = refresh
        self._study = {run_id: study for study in studies for run_id in study.trials["run_id"]}
        self._predictions: dict[tuple[str, str], list[pd.DataFrame]] = {}

    def study_of(self, run_id: str) -> StudyRuns:
        """The study of a trial."""
        return self._study[run_id]

    def predictions(self, run_id: str, split: str) -> list[pd.DataFrame]:
        """A trial's predictions on a split, one frame per seed; empty if a seed has none."""
        key = (run_id, split)
        if key not in self._predictions:
            nets = self._study[run_id].runs_of(run_id)
            try:
                frames = [read.predictions(self.store, net, split) for net in nets]
            except UserError:
                frames = []
            self._predictions[key] = frames
        return self._predictions[key]

    def history(self, run_ids: Sequence[str], metric: str) -> tuple[pd.DataFrame, dict[str, str]]:
        """A metric after every epoch of the nets of some trials.

        Returns:
            Columns run_id (of the net), step, value; and the trial of each net.
        """
        trial_of: dict[str, str] = {}
        for run_id in run_ids:
            below = self._study[run_id].seeds_of(run_id)
            trial_of |= dict.fromkeys(below["run_id"] if len(below) else [run_id], run_id)
        return read.history(self.store, list(trial_of), metric, self._refresh), trial_of

    def artifacts(self, run_id: str) -> Path | None:
        """The artifacts of a trained run, if they are on this machine and hold a config."""
        if self.store.is_server:
            return None
        net = self._study[run_id].runs_of(run_id)[0]
        try:
            return read.artifact(self.store, net, "config.yaml").parent
        except UserError:
            return None


def compressed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of compressed trials."""
    return table[table["compression"] != ""] if "compression" in table else table.iloc[:0]


def with_origins(
    table: pd.DataFrame, origins: pd.DataFrame, metrics: Sequence[str]
) -> pd.DataFrame:
    """Add origin_label and `origin/<metric>`; without any origin, drop the compression columns.

    Args:
        table: From `src.reporting.comparison.compare`.
        origins: The runs that the trials were made from, as far as the store has them.
        metrics: Recorded names.
    """
    if not (table["origin"] != "").any():
        return table.drop(columns=list(COMPRESSION))
    rows = origins.set_index("run_id").reindex(table["origin"])
    model = rows.get("tags.model", pd.Series(index=rows.index, dtype=object)).fillna("run")
    label = pd.Series(model.to_numpy(), table.index) + " " + table["origin"].str[:6]
    values = {
        f"origin/{name}": rows[f"metrics.{name}"].to_numpy(dtype=float)
        if f"metrics.{name}" in rows
        else missing(len(table))
        for name in metrics
    }
    return table.assign(origin_label=label.where(table["origin"] != "", ""), **values)


def compression_costs(table: pd.DataFrame) -> pd.DataFrame:
    """What compression changed, one row per compressed trial and metric.

    Returns:
        Columns label, compression, made_from; size, latency and FLOPs as shares of the origin;
        metric; lost, low and high in percentage points (above 0: the compressed net is worse) with
        the paired interval on the same images; split; verdict on a loss of one point. Columns
        without values are left out.
    """
    rows = compressed(table)
    names = [
        str(name) for name in rows if re.fullmatch(rf"{LOST}/.*(?<!/low)(?<!/high)", str(name))
    ]
    shares = {"size": SIZE, "latency": "efficiency/latency_ratio", "FLOPs": FLOPS}
    frames = []
    for name in names:
        frame = rows[["label", "compression"]].assign(made_from=rows["origin_label"])
        for title, cost in shares.items():
            if f"origin/{cost}" in rows:
                frame[title] = rows[cost] / rows[f"origin/{cost}"]
        ends = [name, f"{name}/low", f"{name}/high"]
        frame["metric"] = name.removeprefix(f"{LOST}/")
        frame[["lost", "low", "high"]] = rows.reindex(columns=ends).astype(float) * 100
        verdicts = [frame["high"] < 1, frame["low"] > 1]
        less, more = "less than 1 point", "more than 1 point"
        frame["verdict"] = np.select(verdicts, [less, more], "undecided")
        frames.append(frame.assign(split=rows["lost_on"]))
    if not frames:
        return pd.DataFrame()
    every = pd.concat(frames).sort_index(kind="stable")
    return every[every["lost"].notna()].dropna(axis="columns", how="all").reset_index(drop=True)


def values_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> np.ndarray:
    """The objectives of each trial, float (N, M); NaN without a complete, feasible result."""
    names = [recorded_name(objective.metric) for objective in objectives]
    values = table.reindex(columns=names).to_numpy(dtype=float, copy=True)
    values[~table["feasible"].to_numpy(dtype=bool) | np.isnan(values).any(axis=1)] = np.nan
    return values


def compared(
    study: StudyRuns, objectives: Sequence[Objective], limits: Sequence[Limit]
) -> pd.DataFrame:
    """The trials as `compare` returns them, with study, time of their end and a unique label."""
    table = compare(study.trials, objectives, limits).copy()
    runs = study.trials.set_index("run_id").reindex(table["run_id"])
    table["study"] = study.name
    repeats = runs.get("params.repeats", pd.Series(index=runs.index, dtype=object))
    table["repeats"] = pd.to_numeric(repeats, errors="coerce").to_numpy()
    table["ended"] = runs["end_time"].array
    metrics = [*(recorded_name(each.metric) for each in objectives), *COSTS, SIZE]
    table = with_origins(table, study.origins, list(dict.fromkeys(metrics)))
    model = table["model"].where(table["model"] != "", "trial")
    if "compression" in table:
        model = (model + " " + table["compression"]).str.strip()
    trial = table["trial"].where(table["trial"] != "", table["run_id"].str[:8])
    label = model + " #" + trial.astype(str)
    twins = label.duplicated(keep=False)
    table["label"] = label.where(~twins, label + " " + table["run_id"].str[:6])
    return table


def rank(
    table: pd.DataFrame, objectives: Sequence[Objective], scale: pareto.Scale
) -> tuple[pd.DataFrame, str]:
    """Add rank, crowding, contribution, knee and state.

    Args:
        table: From `compared`, of one study.
        objectives: M of them.
        scale: On which distances and volumes are measured.

    Returns:
        The table, and in words how the knee was found.
    """
    values = values_of(table, objectives)
    known = ~np.isnan(values).any(axis=1)
    losses = scale.transform(values)
    ranks, crowding, contribution = (np.full(len(table), np.nan) for _ in range(3))
    ranks[known] = pareto.ranks(values[known], list(objectives))
    for value in np.unique(ranks[known]):
        crowding[ranks == value] = pareto.crowding(losses[ranks == value])
    members = np.flatnonzero(table["front"])
    contribution[members] = pareto.contributions(losses[members])
    position, how = pareto.knee(losses[members])
    knee = np.zeros(len(table), dtype=bool)
    if position is not None:
        knee[members[position]] = True
    state = table["status"].str.lower()
    finished = table["status"] == "FINISHED"
    state = state.mask(finished, "dominated").mask(finished & ~known, "no value")
    state = state.mask(finished & ~table["feasible"], "over limit").mask(table["front"], "front")
    added = {"rank": ranks, "crowding": crowding, "contribution": contribution}
    return table.assign(**added, knee=knee, state=state), how


def progress(
    table: pd.DataFrame, objectives: Sequence[Objective], scale: pareto.Scale
) -> pd.DataFrame:
    """The hypervolume after each trial that has ended, in order of time: `Report.progress`."""
    ended = table[table["ended"].notna()].sort_values("ended", kind="stable")
    volumes = pareto.over_time(scale.transform(values_of(ended, objectives)))
    ended = ended[["study", "ended"]].reset_index(drop=True)
    ended.insert(1, "trials", np.arange(1, len(ended) + 1))
    return ended.assign(hypervolume=volumes)


def comparison(
    tables: Sequence[pd.DataFrame], objectives: Sequence[Objective], scale: pareto.Scale
) -> pd.DataFrame:
    """Studies side by side: `Report.comparison`.

    A member of a front is new if no other front has a point that is at least as good in every
    objective.

    Args:
        tables: One per study, from `rank` or `compared`.
        objectives: The same for all studies.
        scale: Fitted on all studies.
    """
    fronts = [values_of(table[table["front"]], objectives) for table in tables]
    signs = [1.0 if each.direction == "minimize" else -1.0 for each in objectives]
    rows = []
    for number, (table, front) in enumerate(zip(tables, fronts, strict=True)):
        others = np.vstack([front[:0], *fronts[:number], *fronts[number + 1 :]])
        covered = np.any((others[None] * signs <= front[:, None] * signs).all(axis=2), axis=1)
        best = (front * signs).min(axis=0) * signs if len(front) else missing(len(signs))
        rows.append(
            {
                "study": table["study"].iloc[0] if len(table) else "",
                "trials": len(table),
                "front": len(front),
                "hypervolume": pareto.hypervolume(scale.transform(front)),
                "new_points": int((~covered).sum()),
                "new": ", ".join(table.loc[table["front"], "label"][~covered]),
            }
            | {
                f"best {recorded_name(each.metric)}": value
                for each, value in zip(objectives, best, strict=True)
            }
        )
    return pd.DataFrame(rows)


def missing(length: int) -> np.ndarray:
    """An array of missing values."""
    return np.full(length, np.nan)


def quality_of(objectives: Sequence[Objective]) -> str:
    """Recorded name of the metric that the answers are about."""
    return recorded_name(quality_objective(objectives).metric)


def costs_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Costs that at least one trial has: FLOPs, parameters, latency, then other objectives."""
    others = [each.metric for each in objectives if is_cost(each.metric)]
    names = [*COSTS, *others]
    if len(compressed(table)):  # compression to fewer bits changes size and latency only
        names = [FLOPS, SIZE, COSTS[2], COSTS[1], *COSTS[3:], *others]
    return [name for name in dict.fromkeys(names) if name in table and table[name].notna().any()]


def retrain(study: StudyRuns, trial: pd.Series, artifacts: Path | None) -> str:
    """One line for a shell that trains a trial's configuration again, as a single run.

    Args:
        study: Of the trial.
        trial: Its row, as the store has it: `tags.overrides`, `tags.seed`, `tags.origin`.
        artifacts: The folder with the run's config.yaml; None if it is on a server.

    Returns:
        The overrides as they were typed. If the record does not hold them all, Hydra is pointed to
        the recorded config; empty if there is none on this machine.
    """
    values = trial.dropna()
    origin = str(values.get("tags.origin", ""))
    # a single run has all overrides in its tag; a compressed single run is below its origin
    single = not study.run_id and str(values.get("parent_id", "")) in ("", origin)
    fixed = "" if single else study.fixed_overrides
    command = ["python", "-m", "src.train"]
    if fixed is None:
        if artifacts is None or not (artifacts / "config.yaml").exists():
            return ""
        command += ["--config-path", str(artifacts), "--config-name", "config"]
        return shlex.join([*command, "study=null", "repeats=1", "hydra.run.dir=logs/runs/again"])
    cell = scan(str(values.get("tags.overrides", "")))
    kept = [*shlex.split(fixed), *(f"{key}={value}" for key, value in cell.items())]
    kept = [each for each in kept if not each.startswith((*_OF_A_STUDY, "sweeps="))]
    if origin:  # the origin of the first seed: the trial's own origin is a trial, too
        seeds = study.seeds_of(str(values.get("run_id")))
        seeds = seeds[seeds["status"] == "FINISHED"] if len(seeds) else seeds
        origin = seeds["tags.origin"].iloc[0] if len(seeds) else origin
        kept = [f"origin={origin}" if each.startswith("origin=") else each for each in kept]
    if study.sweeps:  # the file of sweeps/ says MULTIRUN; the command line overrules it
        command += [f"sweeps={study.sweeps}", "hydra.mode=RUN"]
        kept.append("repeats=1")
    seed = [f"seed={int(float(values['tags.seed']))}"] if "tags.seed" in values else []
    return shlex.join([*command, *kept, *seed])
