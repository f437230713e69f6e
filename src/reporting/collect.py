"""Reads the runs of a study and computes the table of a report: one row per trial."""

import difflib
import io
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from src.core.errors import ConfigError, UserError
from src.metrics import pareto, registry
from src.metrics.formatting import is_cost
from src.metrics.registry import COMPRESSION, COSTS, LOST, PRIMARY, Limit, Objective, describe
from src.reporting.comparison import compare
from src.sweep.overrides import scan
from src.tracking import read
from src.tracking.read import texts
from src.tracking.store import Store

FLOPS, _SIZE, _RATIO = "efficiency/flops", "efficiency/size_mb", "efficiency/latency_ratio"
_COSTS = (*COSTS, "efficiency/peak_memory_mb", "efficiency/energy_mj")
_DEFAULT = (Objective(f"val/{PRIMARY}", "maximize"), Objective(FLOPS, "minimize"))
MOST_NAMES = 12  # in an error message
# A trial gets these from its study; a single run does not take them.
_OF_A_STUDY = ("repeats=", "dry_run=", "test=", "seed=", "study=", "sweeps=")


@dataclass(frozen=True)
class StudyRuns:
    """The runs of one study, or of a search.

    Attributes:
        run_id: The run of the study itself; empty if there is none, as for a search.
        trials: One row per trial, as `src.tracking.read.runs` returns them.
        seeds: The runs below trials with several seeds.
        objectives: As recorded; empty if none are.
        sweeps: The file of sweeps/ that the study was started with; empty if none.
        fixed_overrides: What all trials had on the command line, quoted for a shell; None if it
            is not recorded.
        origins: The runs that compressed trials were made from, of this study or another one.
        store: That has the runs.
    """

    name: str
    run_id: str
    trials: pd.DataFrame
    seeds: pd.DataFrame
    objectives: tuple[Objective, ...] = ()
    limits: tuple[Limit, ...] = ()
    sweeps: str = ""
    fixed_overrides: str | None = None
    origins: pd.DataFrame = field(default_factory=pd.DataFrame)
    store: Store = field(default_factory=Store)

    def seeds_of(self, run_id: str) -> pd.DataFrame:
        """The runs below a trial, by seed; no rows if it has none."""
        rows = self.seeds[texts(self.seeds, "parent_id") == run_id]
        seeds = pd.to_numeric(texts(rows, "tags.seed"), errors="coerce")
        return rows.loc[seeds.sort_values().index]

    def runs_of(self, run_id: str) -> list[str]:
        """The trained runs of a trial: its finished seeds, or the trial itself."""
        seeds = self.seeds_of(run_id)
        return list(texts(seeds[texts(seeds, "status") == "FINISHED"], "run_id")) or [run_id]

    def predictions(self, run_id: str, split: str) -> list[pd.DataFrame]:
        """A trial's predictions on a split, one frame per seed; empty if a seed has none."""
        with suppress(UserError):
            return [read.predictions(self.store, net, split) for net in self.runs_of(run_id)]
        return []

    def artifacts(self, run_id: str) -> Path | None:
        """The artifacts of a trained run, if they are on this machine and hold a config."""
        with suppress(UserError):
            if not self.store.is_server:
                net = self.runs_of(run_id)[0]
                return read.artifact(self.store, net, "config.yaml").parent
        return None

    def before(self, moment: pd.Timestamp) -> "StudyRuns":
        """The study at an earlier time: the trials that had ended by then."""
        name = f"{self.name} before {moment:%Y-%m-%d %H:%M}"
        trials = self.trials[self.trials["end_time"] < moment]
        return replace(self, name=name, run_id="", trials=trials)


def study(runs: pd.DataFrame, name: str, store: Store) -> StudyRuns:
    """The study with this name, out of all runs of the experiment.

    Raises:
        UserError: There is no such study, or it has no trials; the message lists the studies.
    """
    tagged = runs[texts(runs, "tags.study") == name]
    parents = tagged[texts(tagged, "tags.kind") == "study"]
    trials = tagged[tagged["parent_id"].isin(parents["run_id"])] if len(parents) else _tops(tagged)
    if trials.empty:
        place = f"{store.uri} (experiment {store.experiment}), or it has no trials; there"
        raise UserError(f"study={name}: no such study in {place} {_listed(known_studies(runs))}")
    parent = parents.iloc[0].dropna() if len(parents) else pd.Series(dtype=object)
    return replace(_study_runs(name, parent, trials, tagged, runs), store=store)


def selection(runs: pd.DataFrame, name: str, store: Store) -> StudyRuns:
    """The runs of a search, each as a trial.

    Runs of studies are left out; a seed is below its trial if the search returned that, too.

    Raises:
        UserError: There are no runs.
    """
    trials = _tops(runs)
    if trials.empty:
        raise UserError(f"{name}: finds no runs in {store.uri} (experiment {store.experiment})")
    # the origins may be outside the search
    is_compressed = texts(trials, "tags.origin").ne("").any()
    others = read.cached_runs(store) if is_compressed else runs
    parent = pd.Series(dtype=object)
    return replace(_study_runs(name, parent, trials, runs, others), store=store)


def known_studies(runs: pd.DataFrame) -> list[str]:
    """Names of the studies, the newest first."""
    return [str(name) for name in texts(runs, "tags.study").unique() if name]


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
        entries = [{"metric": entry} if isinstance(entry, str) else entry for entry in objectives]
        chosen = _parsed("objectives", registry.parse_objectives, entries)
    else:
        chosen = list(first.objectives or _DEFAULT)
        if any(other.objectives not in ((), first.objectives) for other in studies[1:]):
            warnings.append(
                f"The studies have different objectives; the fronts use those of {first.name}."
            )
    if len(chosen) == 1:
        second = _DEFAULT[0].metric if chosen[0].metric == FLOPS else FLOPS
        chosen.append(Objective(second, describe(second).direction))
        warnings.append(f"A front needs two objectives; {second} was added to {chosen[0].metric}.")
    if all(is_cost(objective.metric) for objective in chosen):
        raise ConfigError("objectives", "must have one that is no cost, else no model is the best")
    parse = registry.parse_limits
    bounds = list(first.limits) if limits is None else _parsed("limits", parse, limits)
    columns = {str(name) for study in studies for name in study.trials.filter(regex=r"^metrics\.")}
    recorded = [name.removeprefix("metrics.") for name in sorted(columns)]
    for key, items in (("objectives", chosen), ("limits", bounds)):
        for number, item in enumerate(items):
            if item.metric not in recorded:
                # similar metrics, else those of the same kind, else all
                useful = [n for n in recorded if n.startswith(("best/val/", "efficiency/"))]
                same = [n for n in useful if n.split("/")[0] == item.metric.split("/")[0]]
                close = difflib.get_close_matches(item.metric, useful, n=5, cutoff=0.75)
                listed = _listed(close or same or useful or recorded)
                raise ConfigError(f"{key}[{number}]", f"no run has {item.metric}; there {listed}")
    return chosen, bounds, warnings


def _parsed(key: str, parse: Callable[[dict[str, Any]], list[Any]], entries: object) -> list[Any]:
    """Parse entries of this command's config; errors name its keys."""
    try:
        return parse({key: entries})
    except ConfigError as error:
        raise ConfigError(error.key.replace("objective.", "", 1) or key, error.problem) from None


def _study_runs(
    name: str, parent: pd.Series, trials: pd.DataFrame, below: pd.DataFrame, runs: pd.DataFrame
) -> StudyRuns:
    """The record of a study: its seeds are among `below`, origins of its trials among `runs`."""
    pairs = re.findall(r"(maximize|minimize) ([^;\s]+)", parent.get("tags.objectives", ""))
    entries = [{"metric": metric, "direction": direction} for direction, metric in pairs]
    if "tags.limits" in parent:
        limits = [text.strip() for text in parent["tags.limits"].split(";") if text.strip()]
    else:
        configs = [text for text in texts(trials, "params.objective.limits") if text]
        limits = re.findall(r'"([^"]+[<>]=[^"]+)"', configs[0]) if configs else []
    try:
        objectives = registry.parse_objectives({"objectives": entries}) if entries else []
        bounds = registry.parse_limits({"limits": limits})
    except ConfigError:  # recorded by a version with other metrics
        objectives, bounds = [], []
    # compressed versions of a trial are below it, too
    is_copy = below["parent_id"] == texts(below, "tags.origin")
    seeds = below[below["parent_id"].isin(trials["run_id"]) & ~is_copy]
    origins = runs[runs["run_id"].isin(set(texts(trials, "tags.origin")) - {""})]
    return StudyRuns(
        name,
        str(parent.get("run_id", "")),
        _without_empty(trials),
        _without_empty(seeds),
        tuple(objectives),
        tuple(bounds),
        str(parent.get("tags.sweeps", "")),
        parent.get("tags.fixed_overrides"),
        _without_empty(origins),
    )


def _without_empty(runs: pd.DataFrame) -> pd.DataFrame:
    """Without the tags, parameters and metrics that none of these runs has."""
    groups = runs.columns.str.startswith(("tags.", "params.", "metrics."))
    return runs.loc[:, ~groups | runs.notna().any()].reset_index(drop=True)


def _tops(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with a trained net, without the seeds of a trial that is there, too."""
    kinds = texts(runs, "tags.kind")
    is_below = runs["parent_id"].isin(runs.loc[kinds == "trial", "run_id"])
    return runs[~kinds.isin(["study", "audit", "evaluation"]) & ~is_below]


def _listed(names: list[str]) -> str:
    if not names:
        return "is none"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{'are' if len(names) > 1 else 'is'} {', '.join(names[:MOST_NAMES])}{more}"


def files_of(store: Store, chosen: pd.DataFrame) -> dict[str, Any]:
    """`Report.layers` and `Report.sheet`, as the first nets of the chosen trials recorded them."""
    tables, sheet = [pd.DataFrame()], b""
    for run_id, label, net in chosen[["run_id", "label", "net"]].to_numpy():
        with suppress(UserError):  # recorded without layers, such as a net outside torch
            rows = pd.read_csv(read.artifact(store, net, "layers.csv"))
            rows = rows.fillna({"layer": "the net itself"})  # the outermost module has no name
            tables.append(rows.assign(run_id=run_id, label=label))
            file = read.artifact(store, net, "figures/augmentation_sheet.png")
            with Image.open(file) as image, io.BytesIO() as small:  # a page holds it
                image.convert("RGB").save(small, "JPEG", quality=85)
                sheet = sheet or small.getvalue()
    return {"layers": pd.concat(tables, ignore_index=True), "sheet": sheet}


def compressed(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of compressed trials."""
    return table[texts(table, "compression") != ""]


def with_origins(
    table: pd.DataFrame, origins: pd.DataFrame, metrics: Sequence[str]
) -> pd.DataFrame:
    """Add origin_label and `origin/<metric>`; without any origin, drop the compression columns.

    Args:
        table: From `src.reporting.comparison.compare`.
        origins: The runs that the trials were made from, as far as the store has them.
        metrics: Recorded names.
    """
    is_made = table["origin"] != ""
    if not is_made.any():
        return table.drop(columns=list(COMPRESSION))
    rows = origins.set_index("run_id").reindex(table["origin"]).set_axis(table.index)
    label = texts(rows, "tags.model").replace("", "run") + " " + table["origin"].str[:6]
    values = rows.reindex(columns=[f"metrics.{name}" for name in metrics]).astype(float)
    values.columns = [f"origin/{name}" for name in metrics]
    return table.assign(origin_label=label.where(is_made, ""), **values)


def compression_costs(table: pd.DataFrame) -> pd.DataFrame:
    """What compression changed, one row per compressed trial and metric.

    Returns:
        Columns label, compression, made_from; size, latency and FLOPs as shares of the origin;
        metric; lost, low and high in percentage points (above 0: the compressed net is worse) with
        the paired interval on the same images; split; verdict on a loss of one point. Columns
        without values are left out.
    """
    rows, frames = compressed(table), []
    for name in map(str, rows.filter(regex=rf"^{LOST}/(?!.*/(low|high)$)")):
        frame = rows[["label", "compression"]].assign(made_from=rows["origin_label"])
        for title, cost in (("size", _SIZE), ("latency", _RATIO), ("FLOPs", FLOPS)):
            if f"origin/{cost}" in rows:
                frame[title] = rows[cost] / rows[f"origin/{cost}"]
        frame["metric"] = name.removeprefix(f"{LOST}/")
        ends = [name, f"{name}/low", f"{name}/high"]
        frame[["lost", "low", "high"]] = rows.reindex(columns=ends).astype(float) * 100
        verdicts = {"less than 1 point": frame["high"] < 1, "more than 1 point": frame["low"] > 1}
        frame["verdict"] = np.select(list(verdicts.values()), list(verdicts), "undecided")
        frames.append(frame.assign(split=rows["lost_on"]))
    if not frames:
        return pd.DataFrame()
    costs = pd.concat(frames).sort_index(kind="stable").dropna(subset="lost")
    return costs.dropna(axis="columns", how="all").reset_index(drop=True)


def values_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> np.ndarray:
    """The objectives of each trial, float (N, M); NaN without a complete, feasible result."""
    names = [objective.metric for objective in objectives]
    values = table.reindex(columns=names).to_numpy(dtype=float, copy=True)
    values[~table["feasible"].to_numpy(dtype=bool) | np.isnan(values).any(axis=1)] = np.nan
    return values


def compared(
    study: StudyRuns, objectives: Sequence[Objective], limits: Sequence[Limit]
) -> pd.DataFrame:
    """The trials as `compare` returns them, with study, time of their end and a unique label."""
    table = compare(study.trials, objectives, limits)
    runs = study.trials.set_index("run_id").reindex(table["run_id"]).reset_index()
    finished = study.seeds[texts(study.seeds, "status") == "FINISHED"]
    counts = texts(finished, "parent_id").value_counts()
    repeats = runs["run_id"].map(counts).fillna(1)
    table = table.assign(study=study.name, repeats=repeats, ended=runs["end_time"])
    metrics = [*(objective.metric for objective in objectives), *_COSTS, _SIZE]
    table = with_origins(table, study.origins, list(dict.fromkeys(metrics)))
    model = table["model"].replace("", "trial") + " " + texts(table, "compression")
    trial = table["trial"].where(table["trial"] != "", table["run_id"].str[:8])
    label = model.str.strip() + " #" + trial.astype(str)
    twins = label.duplicated(keep=False)
    return table.assign(label=label.mask(twins, label + " " + table["run_id"].str[:6]))


def rank(
    table: pd.DataFrame, objectives: Sequence[Objective], scale: pareto.Scale
) -> tuple[pd.DataFrame, str]:
    """Add rank, crowding, contribution, knee and state to a table of one study from `compared`.

    Distances and volumes are measured on `scale`. The text says how the knee was found.
    """
    values = values_of(table, objectives)
    complete = ~np.isnan(values).any(axis=1)
    losses = scale.transform(values)
    ranks, crowding, contribution = np.full((3, len(table)), np.nan)
    ranks[complete] = pareto.ranks(values[complete], list(objectives))
    for value in np.unique(ranks[complete]):
        crowding[ranks == value] = pareto.crowding(losses[ranks == value])
    members = np.flatnonzero(table["front"])
    contribution[members] = pareto.contributions(losses[members])
    position, how = pareto.knee(losses[members])
    knee = np.arange(len(table)) == (-1 if position is None else members[position])
    finished = table["status"] == "FINISHED"
    state = table["status"].str.lower().mask(finished, "dominated")
    state = state.mask(finished & ~complete, "no value")
    state = state.mask(finished & ~table["feasible"], "over limit").mask(table["front"], "front")
    added = {"rank": ranks, "crowding": crowding, "contribution": contribution}
    return table.assign(**added, knee=knee, state=state), how


def progress(
    table: pd.DataFrame, objectives: Sequence[Objective], scale: pareto.Scale
) -> pd.DataFrame:
    """The hypervolume after each trial that has ended, in order of time: `Report.progress`."""
    ended = table[table["ended"].notna()].sort_values("ended", kind="stable", ignore_index=True)
    volumes = pareto.over_time(scale.transform(values_of(ended, objectives)))
    rows = ended[["study"]].assign(trials=ended.index + 1, ended=ended["ended"])
    return rows.assign(hypervolume=volumes)


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
    losses = [pareto.as_losses(front, objectives) for front in fronts]
    rows = []
    for number, (table, front) in enumerate(zip(tables, fronts, strict=True)):
        other_fronts = np.vstack([front[:0], *losses[:number], *losses[number + 1 :]])
        covered = np.any((other_fronts[None] <= losses[number][:, None]).all(axis=2), axis=1)
        row = {
            "study": table["study"].iloc[0] if len(table) else "",
            "trials": len(table),
            "front": len(front),
            "hypervolume": pareto.hypervolume(scale.transform(front)),
            "new_points": int((~covered).sum()),
            "new": ", ".join(table.loc[table["front"], "label"][~covered]),
        }
        for objective, values in zip(objectives, front.T, strict=True):
            best = values.max if objective.direction == "maximize" else values.min
            row[f"best {objective.metric}"] = best() if len(values) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def costs_of(table: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """Costs that at least one trial has: FLOPs, parameters, latency, then other objectives."""
    # compression to fewer bits changes size and latency only
    names = [FLOPS, _SIZE, _RATIO, *_COSTS] if len(compressed(table)) else [*_COSTS]
    names += [objective.metric for objective in objectives if is_cost(objective.metric)]
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
    if "tags.own_config" in values:  # composed from files that may not be here
        fixed = None
    command = ["python", "-m", "src.train"]
    if fixed is None:
        if artifacts is None or not (artifacts / "config.yaml").exists():
            return ""
        command += ["--config-path", str(artifacts), "--config-name", "config"]
        return shlex.join([*command, "study=null", "repeats=1", "hydra.run.dir=logs/runs/again"])
    cell = scan(str(values.get("tags.overrides", "")))
    overrides = [*shlex.split(fixed), *(f"{key}={value}" for key, value in cell.items())]
    overrides = [override for override in overrides if not override.startswith(_OF_A_STUDY)]
    if origin:  # of the first seed: the trial's own origin is a trial, too
        seeds = study.seeds_of(str(values.get("run_id")))
        origins = [*texts(seeds[texts(seeds, "status") == "FINISHED"], "tags.origin"), origin]
        overrides = [
            f"origin={origins[0]}" if override.startswith("origin=") else override
            for override in overrides
        ]
    if study.sweeps:  # the file of sweeps/ says MULTIRUN; the command line overrules it
        command += [f"sweeps={study.sweeps}", "hydra.mode=RUN"]
        overrides.append("repeats=1")
    seed = [f"seed={int(float(values['tags.seed']))}"] if "tags.seed" in values else []
    return shlex.join([*command, *overrides, *seed])
