"""Which runs a report is about: those of a study, of an MLflow experiment, or of a filter."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from src.analysis.comparison import recorded_name
from src.analysis.wording import is_cost
from src.errors import ConfigError, UserError
from src.objectives import Limit, Objective, describe, parse_limits, parse_objectives
from src.tracking import cache
from src.tracking.limits import masked
from src.tracking.store import Store

NO_TRIALS = ("study", "audit", "evaluation")  # kinds of runs that trained nothing
STUDY, TRIAL = "study", "trial"  # the tag `kind` of a study's own run, and of a run above several seeds
COST = "efficiency/flops"  # the second objective of a study that has one only
DEFAULT = (Objective("val/balanced_accuracy", "maximize"), Objective(COST, "minimize"))
SHOWN_NAMES = 12


@dataclass(frozen=True)
class Study:
    """Runs that belong together.

    Attributes:
        name: The study's, or what was asked for.
        run_id: Of the study's own run; empty if there is none, as for a filter.
        trials: A row a trial, as `src.tracking.read.runs` gives them.
        seeds: The runs below trials of several seeds.
        own_objectives: What the study itself was after; empty if it does not say so.
        own_limits: What it had to keep.
        sweeps: The file of sweeps/ that it came from; empty if none.
        fixed_overrides: What all its trials were given on the command line, quoted for a shell; None if not recorded.
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
        below = self.seeds[(self.seeds["parent_id"] == run_id) & (self.seeds["status"] == "FINISHED")]
        seeds = pd.to_numeric(below.get("tags.seed", pd.Series(dtype=float)), errors="coerce")
        return list(below.loc[seeds.sort_values().index, "run_id"]) or [run_id]

    def before(self, moment: pd.Timestamp) -> "Study":
        """What the study was at an earlier time: the trials that had ended by then."""
        name = f"{self.name} before {moment:%Y-%m-%d %H:%M}"
        return replace(self, name=name, run_id="", trials=self.trials[self.trials["end_time"] < moment])


def study(runs: pd.DataFrame, name: str, store: Store) -> Study:
    """The study of that name.

    Args:
        runs: All of the experiment.
        name: Of the study.
        store: For what is said when there is none.

    Raises:
        UserError: There is no such study, or none of its trials has ended well; the message names those there are.
    """
    tagged = runs[_text(runs, "tags.study") == name]
    parents = tagged[_text(tagged, "tags.kind") == STUDY]
    trials = tagged[tagged["parent_id"].isin(parents["run_id"])] if len(parents) else _tops(tagged)
    if trials.empty:
        known = [str(each) for each in _text(runs, "tags.study").unique() if each]
        raise UserError(f"study={name}: no such study in {_where(store)}, or it has no trials; there {_listed(known)}")
    own = parents.iloc[0] if len(parents) else pd.Series(dtype=object)
    objectives, limits = _purpose(own, trials)
    given = own.get("tags.fixed_overrides")
    return Study(
        name,
        str(own.get("run_id", "")),
        _own_columns(trials),
        _own_columns(tagged[tagged["parent_id"].isin(trials["run_id"]) & ~_made_from_parent(tagged)]),
        objectives,
        limits,
        str(own.get("tags.sweeps", "") or "") if isinstance(own.get("tags.sweeps"), str) else "",
        given if isinstance(given, str) else None,
        _origins(runs, trials),
    )


def selection(runs: pd.DataFrame, name: str, store: Store) -> Study:
    """All runs that were found by something else than a study's name, each as a trial.

    Args:
        runs: Those that were found; a study's own run is left out, a seed stands below its trial if that was found too.
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
    return Study(name, "", _own_columns(trials), _own_columns(seeds), objectives, limits, origins=origins)


def purpose(
    studies: Sequence[Study], objectives: Sequence[object] | None, limits: Sequence[object] | None
) -> tuple[list[Objective], list[Limit], list[str]]:
    """What the front is drawn over: as the command line says, else as the first study was.

    Args:
        studies: To be reported on.
        objectives: A list of `{metric: ..., direction: ...}` or of metrics' names; None or empty: the study's own.
        limits: Texts such as "efficiency/params <= 692e3"; None: the study's own, empty: none.

    Returns:
        Objectives, limits, and what a reader has to know about them.

    Raises:
        ConfigError: An objective or a limit that is none, or of a metric that no run has; or costs alone.
    """
    notes = []
    if objectives:
        entries = [{"metric": each} if isinstance(each, str) else each for each in objectives]
        chosen = _under("objectives", lambda: parse_objectives({"objectives": entries}))
    else:
        chosen = list(studies[0].own_objectives or DEFAULT)
        if any(other.own_objectives not in ((), studies[0].own_objectives) for other in studies[1:]):
            notes.append(f"The studies had different objectives; these fronts are drawn over {studies[0].name}'s.")
    if len(chosen) == 1:
        metric = COST if chosen[0].metric != COST else DEFAULT[0].metric
        chosen.append(Objective(metric, describe(metric).direction))
        notes.append(f"There was one objective, {chosen[0]}; a front needs two: {chosen[1]} is the other.")
    given = (
        list(studies[0].own_limits) if limits is None else _under("limits", lambda: parse_limits({"limits": limits}))
    )
    if all(is_cost(each.metric) for each in chosen):
        raise ConfigError("objectives", "must have one that is no cost, for without a quality none is best")
    recorded = {str(name) for each in studies for name in each.trials.columns if str(name).startswith("metrics.")}
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
    fixed = [name for name in runs.columns if not str(name).startswith(("tags.", "params.", "metrics."))]
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


def _purpose(own: pd.Series, trials: pd.DataFrame) -> tuple[tuple[Objective, ...], tuple[Limit, ...]]:
    """Objectives and limits as recorded: on the study's run, else in the config of its trials."""
    told = own.get("tags.objectives")
    objectives = [
        {"metric": metric, "direction": direction}
        for direction, metric in re.findall(r"(maximize|minimize) ([^;\s]+)", told if isinstance(told, str) else "")
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
