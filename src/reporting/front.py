"""The trials of a study as a table: who is on the front, the rank of the rest, and what became of the others."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.analysis.comparison import compare, recorded_name
from src.analysis.decision import quality_objective
from src.analysis.dominance import crowding, front, ranks
from src.analysis.hypervolume import contributions, hypervolume, over_time
from src.analysis.knee import knee
from src.analysis.scale import Scale
from src.analysis.wording import is_cost
from src.objectives import Limit, Objective
from src.reporting.collect import Study
from src.reporting.origins import SIZE, compressed, with_origins

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


def compared(study: Study, objectives: Sequence[Objective], limits: Sequence[Limit]) -> pd.DataFrame:
    """The trials as `compare` gives them, with study, time of their end, and a short unique name each."""
    table = compare(study.trials, objectives, limits).copy()
    ended = study.trials.set_index("run_id")["end_time"]
    table["study"] = study.name
    repeats = study.trials.set_index("run_id").get("params.repeats", pd.Series(dtype=object))
    table["repeats"] = pd.to_numeric(repeats.reindex(table["run_id"]), errors="coerce").to_numpy()
    table["ended"] = ended.reindex(table["run_id"]).to_numpy()
    metrics = dict.fromkeys([*map(recorded_name, (each.metric for each in objectives)), *COSTS, SIZE])
    table = with_origins(table, study.origins, list(metrics))
    model = table["model"].where(table["model"] != "", "trial")
    if "compression" in table:
        model = (model + " " + table["compression"]).str.strip()
    number = table["trial"].where(table["trial"] != "", table["run_id"].str[:8]).astype(str)
    label = model + " #" + number
    twins = label.duplicated(keep=False)
    table["label"] = label.where(~twins, label + " " + table["run_id"].str[:6])
    return table


def rank(table: pd.DataFrame, objectives: Sequence[Objective], scale: Scale) -> tuple[pd.DataFrame, str]:
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
    table = table.assign(rank=places, crowding=rarity, contribution=share, knee=bend, state=_states(table, known))
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

    A member of a front is new if no other study's front has a point that is at least as good in every objective.

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
            fresh = list(table.loc[table["front"], "label"][np.array(new, dtype=bool)]) if new else []
        best = {
            f"best {recorded_name(each.metric)}": _best(own[:, column], each) for column, each in enumerate(objectives)
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


def _is_new(point: np.ndarray, others: Sequence[np.ndarray], objectives: Sequence[Objective]) -> bool:
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
