"""What each parameter of a study does: with the others averaged out, with the others held equal, and at their best."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from src.analysis.comparison import engineering, recorded_name
from src.analysis.dominance import as_losses
from src.analysis.swept import BINS, has_order, is_log, is_numeric, levels
from src.errors import ConfigError
from src.objectives import Objective, describe

COLUMNS = ["parameter", "value", "position", "objective", "mean", "low", "high", "n", "best", "best_run"]
COLUMNS += ["adjusted", "adjusted_low", "adjusted_high", "spread", "ordered", "log"]
COSTS = ("efficiency/", "time/")  # what grows by factors
CONFIDENCE = 0.95
MAX_LEVELS = 50  # texts with more values than this, such as file names, are no ablation
CLEAR, UNCLEAR, NONE, FEW = range(4)  # what a parameter tells
SENTENCES = {
    UNCLEAR: "Nothing can be told of the effect on {label} of {names}: the intervals of all values overlap.",
    NONE: "No effect on {label}: {names}.",
    FEW: "Nothing can be told of the effect on {label} of {names}: not two values have several trials or seeds.",
}
Adjusted = dict[str, tuple[float, float, float]]  # value -> mean, low, high
MISSING = "(missing)"  # the level of a trial that does not have the parameter


def effects(
    table: pd.DataFrame, parameters: pd.DataFrame, objectives: Sequence[Objective], bins: int = BINS
) -> pd.DataFrame:
    """The effect of each value of each parameter on each objective, over the finished trials, those over a limit too.

    The raw mean of a value averages over whatever else its trials had. Where trials were not drawn evenly (TPE draws
    good regions more often) it mixes the effects of several parameters. The adjusted mean does not: it is the mean of
    an additive model (least squares, a constant for each value of each parameter, "does not have it" being a value
    too) over the trials that have the parameter, with this value put in place of theirs. It assumes that effects add
    up, and that nothing changes within a group of a continuous parameter. For a cost that spans a factor of ten the
    model is of the logarithms: effects multiply, its means are geometric. It is missing where the trials cannot tell
    parameters apart. In a balanced grid it is the raw mean, but for such costs.

    Source of the adjusted means: Searle, Speed and Milliken, Population marginal means in the linear model, 1980.

    Args:
        table: From `src.analysis.comparison.compare`. `spread/<metric>` and `repeats` (seeds of a trial) are used if
            they are there.
        parameters: From `src.analysis.swept.parameters`.
        objectives: Their values are read at the chosen epoch; one that no trial has gets no rows.
        bins: Groups of a continuous parameter.

    Returns:
        Sorted by parameter, objective, position. Columns parameter, value (text; of a continuous parameter the range
        of one of up to `bins` quantile groups), position (for sorting and axes), objective (the metric), mean, low,
        high (95% t interval of that mean over trials; of a single trial over its seeds, if `repeats` says how many;
        else missing), n (trials), best (value of the best trial that has this one) and best_run, adjusted,
        adjusted_low, adjusted_high (of the model; where that has a trial for each unknown, by the deviation over
        seeds, pooled), spread (deviation over seeds, root mean square over trials; missing without repeats), ordered
        (whether the parameter's values have an order), log (whether effects on the objective multiply).
    """
    finished = table[table["status"] == "FINISHED"].set_index("run_id")
    groups: dict[str, pd.DataFrame] = {}
    for name in parameters:
        column = parameters[name].reindex(finished.index)
        if is_numeric(column) or column.nunique() <= MAX_LEVELS:
            groups[str(name)] = levels(column, bins).assign(ordered=has_order(column.dropna()))
    trials = {objective: _measured(finished, objective) for objective in objectives}
    adjusted = {objective: _additive(groups, found) for objective, found in trials.items()}
    rows = [
        {"parameter": name, "objective": objective.metric} | row
        for name, group in groups.items()
        for objective in objectives
        for row in _by_value(trials[objective].join(group, how="inner"), objective, adjusted[objective].get(name, {}))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def knee_of(
    effects: pd.DataFrame, parameter: str, objective: Objective, tolerance: float | None = None
) -> tuple[str, str]:
    """The smallest value of an ordered parameter that loses no more than a tolerance against the best one.

    Values are compared by their adjusted means if all have one with an interval, else by their means.

    Args:
        effects: From `effects`.
        parameter: One whose values are numbers or lists of numbers.
        objective: One of those in `effects`.
        tolerance: In the objective's unit. None: the deviation over seeds, root mean square over the values; without
            repeats half the width of the best value's interval; zero without both.

    Returns:
        The value as text, and a paragraph that says where quality falls.

    Raises:
        ConfigError: There are no figures for this parameter and objective, or its values have no order.
    """
    rows = effects.query("parameter == @parameter and objective == @objective.metric").reset_index(drop=True)
    if rows.empty:
        known = ", ".join(effects["parameter"].unique()) or "none"
        raise ConfigError("parameter", f"must be one with {objective.metric}, out of {known}; but got {parameter}")
    if not rows["ordered"].all():
        raise ConfigError("parameter", f"must have values with an order to have a knee, but got {parameter}")
    shown, by_model = _estimates(rows)
    means, which = shown["mean"], "adjusted mean" if by_model else "mean"
    losses = as_losses(means.to_numpy()[:, None], [objective])[:, 0]
    lost = losses - losses.min()
    best = int(lost.argmin())
    tolerance, source = (tolerance, "the given tolerance") if tolerance is not None else _noise(shown, best)
    within = lost <= tolerance * (1 + 1e-9)  # a loss of just the tolerance is within it, whatever the rounding
    knee = int(np.flatnonzero(within)[0])
    values = rows["value"].tolist()
    than, label = f"{source} ({_figure(tolerance)})", describe(objective.metric).label
    said = [f"{parameter}: {label} is best at {values[best]} ({_figure(means[best])}, {which} of n={rows['n'][best]})."]
    if knee != best:
        lower = f"Down to {values[knee]} ({_figure(means[knee])})"
        said.append(f"{lower} it loses {_figure(lost[knee])}, not more than {than}.")
    if knee == 0:
        said.append("That is the smallest value tried: where it falls lies below, if anywhere.")
    else:
        lower = f"At {values[knee - 1]}, the next smaller value, it loses {_figure(lost[knee - 1])}, more than {than}"
        said.append(f"{lower}: {label} falls below {values[knee]}.")
    if not within[knee:].all():
        dips = ", ".join(np.array(values)[knee:][~within[knee:]])
        said.append(f"But it is no steady curve: {dips}, though larger, loses more than that.")
    return values[knee], " ".join(said)


def say_effects(effects: pd.DataFrame, objectives: Sequence[Objective]) -> list[str]:
    """What the effects tell: a sentence or two a parameter, and one for all those that tell nothing.

    A parameter tells something if the 95% intervals of two of its values do not overlap (for one pair that is a level
    of about 0.006, uncorrected); the two furthest apart are named. Adjusted means count if all its values have one.

    Args:
        effects: From `effects`.
        objectives: The most important first.

    Returns:
        By objective: clear findings, the greatest difference first; then what nothing can be told of, and why.
    """
    said: list[str] = []
    for objective in objectives:
        label = describe(objective.metric).label
        rows = effects[effects["objective"] == objective.metric]
        several = [(str(name), some) for name, some in rows.groupby("parameter", sort=False) if len(some) > 1]
        found = [_finding(some.reset_index(drop=True), name, label) for name, some in several]
        said += [text for kind, _, text in sorted(found, key=lambda each: -each[1]) if kind == CLEAR]
        for unclear, sentence in SENTENCES.items():
            names = ", ".join(text for kind, _, text in found if kind == unclear)
            said += [sentence.format(label=label, names=names)] if names else []
    return said


def ablation_table(
    effects: pd.DataFrame, objectives: Sequence[Objective], parameters: Sequence[str] | None = None
) -> pd.DataFrame:
    """Mean, interval and number of trials, for people.

    Args:
        effects: From `effects`.
        objectives: A column each.
        parameters: Which ones; None for all.

    Returns:
        A row a value: parameter, value, then for each objective a column such as "balanced accuracy (validation),
        higher is better", its cells "0.612 [0.580, 0.644] (n=6)", without brackets where no interval is known and
        "-" where there is no figure.
    """
    chosen = effects if parameters is None else effects[effects["parameter"].isin(list(parameters))]
    table = chosen[["parameter", "value"]].drop_duplicates().reset_index(drop=True)
    for objective in objectives:
        rows = chosen[chosen["objective"] == objective.metric]
        cells = {(row["parameter"], row["value"]): _cell(row) for _, row in rows.iterrows()}
        better = "higher" if objective.direction == "maximize" else "lower"
        column = [cells.get((name, value), "-") for name, value in table[["parameter", "value"]].to_numpy()]
        table[f"{describe(objective.metric).axis}, {better} is better"] = column
    return table


def _measured(finished: pd.DataFrame, objective: Objective) -> pd.DataFrame:
    """Result, deviation over seeds and number of seeds of the trials that have a result."""
    metric = recorded_name(objective.metric)
    columns = {"result": metric, "seed_spread": f"spread/{metric}", "seeds": "repeats"}
    found = finished.reindex(columns=list(columns.values())).set_axis(list(columns), axis=1)
    found = found.astype(float).replace([math.inf, -math.inf], math.nan).dropna(subset="result")
    return found.assign(log=objective.metric.startswith(COSTS) and is_log(found["result"]))


def _by_value(trials: pd.DataFrame, objective: Objective, adjusted: Adjusted) -> Iterator[dict[str, Any]]:
    for (position, value), some in trials.groupby(["position", "value"], sort=True):
        results = some["result"].to_numpy()
        best = int(as_losses(results[:, None], [objective])[:, 0].argmin())
        low, high = _interval(results, some["seed_spread"].iloc[0], some["seeds"].iloc[0])
        row = {"value": value, "position": position, "mean": results.mean(), "low": low, "high": high}
        row |= {"n": len(results), "best": results[best], "best_run": some.index[best]}
        row |= dict(zip(("adjusted", "adjusted_low", "adjusted_high"), adjusted[str(value)], strict=True))
        row |= {name: bool(some[name].all()) for name in ("ordered", "log")}
        yield row | {"spread": math.sqrt((some["seed_spread"] ** 2).mean())}


def _interval(results: np.ndarray, spread: float, seeds: float) -> tuple[float, float]:
    """Of the mean over trials; of a single trial over its seeds, as far as they are known."""
    n, deviation = (len(results), float(results.std(ddof=1))) if len(results) > 1 else (seeds, spread)
    if not n > 1:  # nor is NaN
        return math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation / math.sqrt(n)
    return results.mean() - half, results.mean() + half


def _additive(groups: dict[str, pd.DataFrame], trials: pd.DataFrame) -> dict[str, Adjusted]:
    """Adjusted mean and its interval of each value of each parameter; NaN where the trials cannot tell."""
    if trials.empty or not groups:
        return {}
    y, noise, log = trials["result"].to_numpy(), trials["seed_spread"], bool(trials["log"].all())
    if log:
        y, noise = np.log(y), noise / y
    values = {
        name: group["value"].reindex(trials.index).astype(object).fillna(MISSING) for name, group in groups.items()
    }
    dummies = {name: pd.get_dummies(column, dtype=float) for name, column in values.items()}
    design = np.concatenate([block.to_numpy() for block in dummies.values()], axis=1)
    left, scale, right = np.linalg.svd(design, full_matrices=False)
    rank = int((scale > scale[0] * max(design.shape) * np.finfo(float).eps).sum())
    left, scale, right = left[:, :rank], scale[:rank], right[:rank]
    coefficients = right.T @ (left.T @ y / scale)
    free = float(len(y) - rank)
    variance = ((y - design @ coefficients) ** 2).sum() / max(free, 1)
    if free == 0:  # a trial for each unknown: only the seeds, pooled, tell what is noise
        free, variance = (trials["seeds"] - 1).sum(skipna=False), (noise**2 / trials["seeds"]).mean()
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, free) * math.sqrt(variance) if free > 0 else math.nan
    found: dict[str, Adjusted] = {name: {} for name in dummies}
    end = 0
    for name, block in dummies.items():
        end += block.shape[1]
        has = block.get(MISSING, pd.Series(0, block.index)).to_numpy() == 0
        for at, value in enumerate(block if has.any() else []):
            point = design[has].mean(axis=0)
            point[end - block.shape[1] : end] = np.eye(block.shape[1])[at]
            seen = right @ point
            # a sum of coefficients can be told from the trials if it lies in the space that they span
            known = np.linalg.norm(point - right.T @ seen) < 1e-8 * np.linalg.norm(point)
            half = reach * np.linalg.norm(seen / scale)
            three = point @ coefficients + np.array([0.0, -half, half]) if known else np.full(3, math.nan)
            found[name][str(value)] = tuple(np.exp(three) if log else three)
    return found


def _estimates(rows: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Figures with `mean`, `low` and `high` of the additive model, if all values have them, else as they are."""
    names = {"adjusted": "mean", "adjusted_low": "low", "adjusted_high": "high"}
    if rows[list(names)].isna().any(axis=None) or np.allclose(rows["adjusted_low"], rows["low"]):
        return rows, False
    return rows.drop(columns=list(names.values())).rename(columns=names), True


def _noise(rows: pd.DataFrame, best: int) -> tuple[float, str]:
    if rows["spread"].notna().any():
        return math.sqrt((rows["spread"] ** 2).mean()), "the deviation over seeds"
    half = (rows["high"][best] - rows["low"][best]) / 2
    return (0.0, "the tolerance") if math.isnan(half) else (half, "half the width of the best value's 95% interval")


def _finding(rows: pd.DataFrame, parameter: str, label: str) -> tuple[int, float, str]:
    """What is found (CLEAR, ...), the size of the difference, and a text about it."""
    shown, by_model = _estimates(rows)
    shown = shown.dropna(subset=["mean", "low", "high"]).sort_values("mean", kind="stable", ignore_index=True)
    if len(shown) < 2:
        return FEW, 0.0, parameter
    mean, low, high = (shown[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    if mean[-1] - mean[0] <= 1e-9 * abs(mean).max():  # rounding
        return NONE, 0.0, parameter
    apart = low[None, :] - high[:, None]  # by how much the interval of column j lies above that of row i
    if not (apart > 0).any():
        return UNCLEAR, 0.0, f"{parameter} ({_figure(mean[0])} to {_figure(mean[-1])})"
    gaps = np.where(apart > 0, mean[None, :] - mean[:, None], 0.0)
    less, more = (shown.iloc[at] for at in np.unravel_index(gaps.argmax(), gaps.shape))
    ratio, gap = more["mean"] / less["mean"], more["mean"] - less["mean"]
    times = f"by a factor of {ratio:.3g}" if less["log"] else f"by {_figure(gap)}"
    text = f"{parameter} changes {label} {times}: {_cell(less)} at {less['value']}, {_cell(more)} at {more['value']}"
    text += ", other parameters held equal." if by_model else ", others averaged out."
    raw = rows.set_index("value")["mean"]
    raw_gap = raw[more["value"]] - raw[less["value"]]
    if by_model and not less["log"] and abs(raw_gap - gap) > gap / 4:
        text += f" The raw means differ by {_figure(raw_gap)}, for the other parameters were not drawn evenly."
    return CLEAR, math.log(ratio) if less["log"] else gap, text


def _cell(row: pd.Series) -> str:
    interval = "" if math.isnan(row["low"]) else f" [{_figure(row['low'])}, {_figure(row['high'])}]"
    return f"{_figure(row['mean'])}{interval} (n={row['n']})"


def _figure(value: float) -> str:
    if abs(value) >= 1000:
        return ("-" if value < 0 else "") + engineering(abs(value))
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
